"""From what a user calls a model to its facts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint

from outsize.errors import HubUnreachable, ModelNotFound
from outsize.models.files.folder import ModelFolder, open_folder
from outsize.models.resolve import fetch_folder, find_folder, resolve_spec

hub = importlib.import_module("outsize.models.files.hub")
download = importlib.import_module("outsize.models.files.download")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "facebook" / "opt-66b", ARCHITECTURES["opt"].make_model())


def nowhere(*_: object, **__: object) -> None:
    return None


def test_a_shipped_name_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_folder", None)
    assert resolve_spec("facebook/opt-66b").parameters == 65_719_701_504


def test_a_folder_of_a_shipped_name_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert resolve_spec("facebook/opt-66b").parameters < 1_000_000


def test_a_revision_is_never_the_shipped_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(model: str, revision: str | None, whole: bool) -> Path:
        asked.append((model, revision, whole))
        return folder

    monkeypatch.setattr(hub, "cached_folder", cached)
    assert resolve_spec("facebook/opt-66b", "v2").parameters < 1_000_000
    assert asked == [("facebook/opt-66b", "v2", False)]


def test_the_hub_is_asked_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remote(model: str, revision: str | None) -> ModelFolder:
        assert (model, revision) == ("someone/model", None)
        return open_folder(folder)

    monkeypatch.setattr(hub, "cached_folder", nowhere)
    monkeypatch.setattr(hub, "remote_model", remote)
    assert resolve_spec("someone/model").architecture == "OPTForCausalLM"


@pytest.mark.parametrize("name", ["./none", "/none", "~/none", "a/b/c"])
def test_what_can_only_be_a_path(name: str) -> None:
    with pytest.raises(ModelNotFound, match="no such folder"):
        find_folder(name)


def test_weights_are_downloaded_where_they_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_folder", nowhere)
    told: list[tuple[int, int]] = []

    def fetch(model: str, revision: str | None, progress: Callable[[int, int], None] | None) -> Path:
        if progress is not None:
            progress(1, 2)
        return folder

    monkeypatch.setattr(download, "download", fetch)
    assert fetch_folder("someone/model").format == "safetensors"
    assert fetch_folder("someone/model", progress=lambda done, of: told.append((done, of))).format == "safetensors"
    assert told == [(1, 2)]


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_nothing_is_downloaded(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "cached_folder", nowhere)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        fetch_folder("someone/model")


def test_a_folder_without_weights_cannot_be_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        fetch_folder(str(folder))
