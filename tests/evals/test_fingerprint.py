from __future__ import annotations

import os
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from outsize.errors import DamagedModel
from outsize.evals.fingerprint import fingerprint, tokenizer_fingerprint
from outsize.models.files.folder import ModelFile, open_folder

DEMO = Path(str(resources.files("outsize"))) / "demo_model"


def copied(path: Path) -> Path:
    return Path(shutil.copytree(DEMO, path))


def test_a_copy_is_the_same_model(tmp_path: Path) -> None:
    copy = copied(tmp_path / "copy")
    os.utime(copy / "model.safetensors", (0, 0))
    assert fingerprint(open_folder(copy)) == fingerprint(open_folder(DEMO))
    assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(DEMO)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_other_weights_or_another_configuration_are_another_model(tmp_path: Path, name: str) -> None:
    copy = copied(tmp_path / "copy")
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data.replace(b"10000", b"20000").replace(b'"rope_theta": 1000', b'"rope_theta": 2000'))
    if name == "model.safetensors":
        (copy / name).write_bytes(data[:-7] + b"other"[:5] + data[-2:])
    assert fingerprint(open_folder(copy)) != fingerprint(open_folder(DEMO))
    assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(DEMO)


def test_another_tokenizer(tmp_path: Path) -> None:
    copy = copied(tmp_path / "copy")
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text().replace("<unk>", "<other>"))
    assert tokenizer_fingerprint(copy) != tokenizer_fingerprint(DEMO)


def test_a_file_that_is_gone() -> None:
    folder = open_folder(DEMO)
    with pytest.raises(DamagedModel, match="cannot be read"):
        fingerprint(replace(folder, files=(ModelFile("gone", 5),)))
