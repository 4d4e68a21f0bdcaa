"""Surveys are kept as long as nothing they depend on has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from safetensors.torch import save_file

from outsize.models import survey_cache, tracing
from outsize.models.files.folder import open_folder
from outsize.models.spec import StoredTensor
from outsize.models.survey_cache import folder_spec, same_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", ARCHITECTURES["llama"].make_model())


def forbid_surveys(monkeypatch: pytest.MonkeyPatch) -> None:
    def survey(*_: object) -> None:
        raise AssertionError("surveyed again")

    monkeypatch.setattr(tracing, "survey", survey)


def test_a_model_is_surveyed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = folder_spec(open_folder(folder))
    forbid_surveys(monkeypatch)
    assert folder_spec(open_folder(folder)) == spec


def test_and_again_when_something_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_spec(open_folder(folder))
    forbid_surveys(monkeypatch)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0}))
    with pytest.raises(AssertionError, match="again"):
        folder_spec(open_folder(folder))
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AssertionError, match="again"):
        folder_spec(open_folder(folder), "AutoModel")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(AssertionError, match="again"):
        folder_spec(open_folder(folder))


def test_a_kept_survey_that_is_damaged_is_made_again(folder: Path, own_cache: Path) -> None:
    spec = folder_spec(open_folder(folder))
    (kept,) = (own_cache / "specs").iterdir()
    kept.write_text("{")
    assert folder_spec(open_folder(folder)) == spec
    assert kept.read_text() != "{"


def test_a_cache_that_cannot_be_written_is_done_without(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_cache / "specs").mkdir(parents=True)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert folder_spec(open_folder(folder)).parameters > 0
    assert not list((own_cache / "specs").iterdir())


def test_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_cache, "CHUNK", 64)
    data = torch.arange(100, dtype=torch.float32)
    other = data.clone()
    other[90] = 0
    tensors = {"a": data, "b": data.clone(), "c": other, "d": data[:50].clone(), "e": data.to(torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    folder = open_folder(tmp_path)
    same = same_bytes(folder)
    by_name: dict[str, StoredTensor] = {t.name: t for t in folder.tensors}
    equal = {name: same(by_name["a"], by_name[name]) for name in "abcde"}
    assert equal == {"a": True, "b": True, "c": False, "d": False, "e": False}


def test_where_bytes_cannot_be_read_the_configuration_is_taken_at_its_word(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    a, b = (StoredTensor(name, "float32", (1,), "", 0, 4) for name in "ab")
    assert same_bytes(open_folder(tmp_path))(a, b)


def test_equal_elements_of_strided_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.arange(24, dtype=torch.float32).view(4, 6)
    other = data.clone()
    other[3, 5] = 0
    tensors = {"a": data, "b": data.t().contiguous().t(), "c": other.t().contiguous().t(), "d": data.t().contiguous()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    folder = open_folder(tmp_path)
    same = same_bytes(folder)
    by_name: dict[str, StoredTensor] = {t.name: t for t in folder.tensors}
    assert by_name["b"].strides == (1, 4)
    assert [name for name in "abcd" if same(by_name["b"], by_name[name])] == ["a", "b"]
    monkeypatch.setattr(survey_cache, "MOST_REPEATED", 0)
    assert not same(by_name["a"], by_name["b"])
