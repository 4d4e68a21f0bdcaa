"""Small files of hostile folders: refused before they are read, and never with all memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from cli.datasets import DEMO

from outsize.errors import DamagedModel, UntrustedModel
from outsize.models.files.parse_json import MOST_CONFIG_BYTES, parse_json_object
from outsize.models.files.small_files import check_small_file, check_small_files, read_settings
from outsize.models.files.tokenizer_limits import check_tokenizer, check_vocabulary, tokenizer_errors

NAMES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    return folder


def test_a_sound_folder_passes(folder: Path) -> None:
    check_small_files(folder)
    check_tokenizer(folder)


@pytest.mark.parametrize("name", [*NAMES, "vocab.txt", "additional_chat_templates/a.jinja"])
def test_links_out_of_the_folder_pipes_and_devices(folder: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    for make in (lambda at: at.symlink_to(secret), lambda at: at.symlink_to("/dev/zero"), os.mkfifo, os.mkdir):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(DamagedModel, match=name.rpartition("/")[2]):
            check_small_files(folder)


def test_a_folder_of_templates_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").symlink_to(tmp_path)
    with pytest.raises(UntrustedModel, match="leaves the model's folder"):
        check_small_files(folder)


def test_files_beyond_all_reason(folder: Path) -> None:
    with (folder / "tokenizer_config.json").open("r+b") as file:
        file.truncate(MOST_CONFIG_BYTES + 1)
    with pytest.raises(DamagedModel, match="too large"):
        check_small_files(folder)


def test_files_that_settings_name_elsewhere(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"fast_tokenizer_files": ["../tokenizer.4.0.json"]}')
    with pytest.raises(UntrustedModel, match=r"tokenizer\.4\.0\.json"):
        check_small_files(folder)


def test_settings_that_are_not_there_are_empty(folder: Path) -> None:
    assert read_settings(folder, "processor_config.json") == {}


def grows(characters: int) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * characters}


@pytest.mark.parametrize(
    "settings",
    [
        {"normalizer": grows(1_000_000)},
        {"normalizer": {"type": "Sequence", "normalizers": [grows(100)] * 4}},
        {"decoder": {"type": "Sequence", "decoders": [grows(100), {"type": "Sequence", "decoders": [grows(100)]}]}},
        {"padding": {"strategy": {"Fixed": 10**9}}},
        {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 10**9}},
    ],
)
def test_tokenizers_that_multiply(folder: Path, settings: dict[str, object]) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, **settings}))
    with pytest.raises(DamagedModel, match=r"tokenizer\.json: its?"):
        check_tokenizer(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"version":', "[" * 100_000])
def test_tokenizers_that_are_none(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(DamagedModel, match=r"tokenizer\.json"):
        check_tokenizer(folder)


def test_panics_of_the_library_are_errors_and_interrupts_are_not() -> None:
    class PanicException(BaseException):  # as pyo3 names its own
        pass

    with pytest.raises(DamagedModel, match="no entry found"), tokenizer_errors():
        raise PanicException("no entry found for key")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors():
        raise KeyboardInterrupt


def test_tokens_without_a_row_in_the_embedding() -> None:
    class Embedding:
        num_embeddings = 10

    check_vocabulary(9, Embedding())
    check_vocabulary(10, object())
    with pytest.raises(DamagedModel, match="token 10"):
        check_vocabulary(10, Embedding())


def test_a_key_twice_among_very_many_is_found_in_no_time() -> None:
    pairs = ",".join(f'"{i}":0' for i in range(200_000))
    with pytest.raises(DamagedModel, match="'199999' twice"):
        parse_json_object(f'{{{pairs},"199999":0}}'.encode(), "x")


def test_a_file_that_goes_while_it_is_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outsize.models.files.small_files.inside", lambda folder, name: folder / "gone")
    with pytest.raises(DamagedModel, match=r"tokenizer\.json: cannot be read: No such file"):
        check_small_file(folder, "tokenizer.json")


def test_no_tokenizer_file_and_no_folder(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    check_tokenizer(folder)  # there are other kinds
    with pytest.raises(DamagedModel, match="cannot be listed: No such file"):
        check_small_files(folder / "gone")


def test_errors_of_ours_pass_through_the_tokenizers() -> None:
    with pytest.raises(UntrustedModel, match="as it was"), tokenizer_errors():
        raise UntrustedModel("as it was")
