"""The files that transformers reads besides weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.datasets import DEMO

from outsize.errors import DamagedModel, ModelNotFound, UntrustedModel
from outsize.models.tracing import pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    return folder


def test_the_tokenizer_of_a_folder(folder: Path) -> None:
    assert pretrained.load_tokenizer(folder).encode("dish")
    assert pretrained.load_processor(folder) is not None  # of a model of text alone: its tokenizer
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelNotFound, match=r"no tokenizer that transformers can read .*; try: put tokenizer\.json"):
        pretrained.load_tokenizer(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_code_in_the_folder(folder: Path, file: str) -> None:
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / file).read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / file).write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UntrustedModel, match="never run"):
        pretrained.load_tokenizer(folder)


def test_errors_on_the_way_that_are_ours_or_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (DamagedModel("as it was"), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
        with pytest.raises(type(error)):
            pretrained.load_tokenizer(folder)


def test_generation_settings(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": [1, 2], "temperature": 0.5}')
    found = pretrained.load_generation_config(folder)
    assert (found.eos_token_id, found.temperature) == ([1, 2], 0.5)
    for nothing in ("", "{}"):
        file.write_text(nothing)
        assert pretrained.load_generation_config(folder) is None
    for wrong in ('{"eos_token_id": "</s>"}', '{"bos_token_id": -7}', '{"pad_token_id": [0, 4294967296]}'):
        file.write_text(wrong)
        with pytest.raises(DamagedModel, match=r"generation_config\.json: transformers cannot read it"):
            pretrained.load_generation_config(folder)
    file.unlink()
    assert pretrained.load_generation_config(folder) is None
