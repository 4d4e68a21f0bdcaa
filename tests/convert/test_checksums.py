from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint

from outsize.convert import checksums
from outsize.convert.checksums import read_checksums, verify
from outsize.convert.convert import convert, is_converted
from outsize.convert.source import FolderSource, identify
from outsize.errors import DamagedModel, ModelNotFound, UntrustedModel
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checksums")
    folder = open_folder(write_checkpoint(root / "source", ARCHITECTURES["llama"].make_model()))
    convert(FolderSource(folder), folder.tensors, folder_spec(folder), "int4", root / "out")
    return root / "out"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = folder / checksums.NAME
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_what_was_written_is_verified(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "PIECE", 4096)
    steps: list[tuple[int, int]] = []
    found = verify(copy, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (found.nbytes, found.nbytes)
    assert steps == sorted(steps)
    covered = sum(path.stat().st_size for path in copy.iterdir() if path.name != checksums.NAME)
    assert found.nbytes == covered


def test_the_first_bad_tensor_is_named(copy: Path) -> None:
    tensors = {tensor.name: tensor for tensor in open_folder(copy).tensors}
    for name in ("model.layers.3.mlp.up_proj.weight_scale", "model.layers.1.mlp.up_proj.weight_packed"):
        flip(copy / "model.safetensors", tensors[name].offset + 1)
    with pytest.raises(DamagedModel, match=r"layers\.1\.mlp\.up_proj\.weight_packed is damaged"):
        verify(copy)


def test_the_header_and_small_files_count_too(copy: Path) -> None:
    flip(copy / "model.safetensors", 20)
    with pytest.raises(DamagedModel, match=r"model\.safetensors: the header is damaged"):
        verify(copy)
    flip(copy / "model.safetensors", 20)
    flip(copy / "config.json", 20)
    with pytest.raises(DamagedModel, match=r"config\.json is damaged"):
        verify(copy)


def test_files_cut_short_or_gone(copy: Path) -> None:
    with (copy / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DamagedModel, match=r"not complete; need .* have 5000 bytes"):
        verify(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(DamagedModel, match=r"model\.safetensors"):
        verify(copy)


def test_folders_without_checksums(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such folder"):
        verify(tmp_path / "nowhere")
    (copy / checksums.NAME).unlink()
    with pytest.raises(ModelNotFound, match="nothing to compare"):
        verify(copy)
    assert read_checksums(copy) is None


def test_unfinished_work_is_not_taken_for_a_copy(copy: Path, made: Path) -> None:
    source = identify(open_folder(made.parent / "source")).digest
    assert is_converted(copy, source, "int4")
    assert not is_converted(copy, source, "int8")
    assert not is_converted(copy, "another", "int4")
    change(copy, lambda content: content.update(complete=False))
    assert not is_converted(copy, source, "int4")
    with pytest.raises(DamagedModel, match="not finished"):
        verify(copy)


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (lambda content: content.update(schema=9), DamagedModel),
        (lambda content: content.pop("made"), DamagedModel),
        (lambda content: content.update(files=[]), DamagedModel),
        (lambda content: content["files"]["model.safetensors"][1].update(offset=-1), DamagedModel),
        (lambda content: content["files"]["model.safetensors"][1].update(offset=1 << 64), DamagedModel),
        (lambda content: content["files"]["model.safetensors"][1].pop("sha256"), DamagedModel),
        (lambda content: content["files"].update({"../other": []}), UntrustedModel),
    ],
)
def test_checksums_that_make_no_sense(
    how: Callable[[dict[str, Any]], object], kind: type[DamagedModel], copy: Path
) -> None:
    change(copy, how)
    with pytest.raises(kind):
        verify(copy)
    assert not is_converted(copy, "any", "int4")


def test_a_link_out_of_the_folder_is_not_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").rename(tmp_path / "elsewhere")
    (copy / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedModel):
        verify(copy)
