from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from fakehub import COMMIT, FakeHub

from outsize.convert import cache, chunks, recipe
from outsize.convert.cache import convert_model, converted_folder
from outsize.convert.checksums import NAME, verify
from outsize.convert.hub_source import SCRATCH, HubSource
from outsize.errors import HubUnreachable, ModelChanged, UsageError
from outsize.models.files.hub import cached_folder

MODEL = "some/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants, file_download

    with FakeHub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield server


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "LIMIT", 50_000)
    monkeypatch.setattr(recipe, "LEAST", 5_000)
    monkeypatch.setattr(chunks, "PIECE", 5000)


def serve(hub: FakeHub, tmp_path: Path, form: str = "sharded safetensors") -> Path:
    arch = ARCHITECTURES["bloom" if form == "sharded bin" else "llama"]
    folder = write_checkpoint(tmp_path / "published", arch.make_model(), form, without_prefix=arch.prefix)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_odd.py").write_text("raise SystemExit")
    hub.add_folder(MODEL, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != NAME}


def test_strided_views_of_a_hub_model(hub: FakeHub, tmp_path: Path) -> None:
    folder = serve(hub, tmp_path, "bin")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: t.t().contiguous().t() for name, t in state.items()}, folder / "pytorch_model.bin")
    hub.add_folder(MODEL, folder)
    made = convert_model(MODEL, "int4", discard_source=True).folder
    local = convert_model(str(folder), "int4").folder
    assert contents(made) == contents(local)
    verify(made)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded bin", "bin"])
def test_one_file_at_a_time_and_the_same_weights(
    hub: FakeHub, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = serve(hub, tmp_path, form)
    most = 0
    real = HubSource.read_into

    def watched(self: HubSource, *args: object) -> int:
        nonlocal most
        here = (tmp_path / f"out.partial/{SCRATCH}").glob("models--*/snapshots/*/*model*")
        most = max(most, sum(path.suffix in (".safetensors", ".bin") for path in here))
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(HubSource, "read_into", watched)
    made = convert_model(MODEL, "int4", out=tmp_path / "out", discard_source=True)
    assert most == 1
    verify(made.folder)
    assert "tokenizer.json" in contents(made.folder)
    assert cached_folder(MODEL, whole=True) is None
    assert not (tmp_path / "out.partial").exists()
    here = convert_model(str(published), "int4", out=tmp_path / "here")
    assert contents(here.folder) == contents(made.folder)


def test_it_goes_on_where_it_ended_and_loads_no_finished_file_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, tmp_path)
    out = tmp_path / "out"
    real = HubSource.begin

    def broken(self: HubSource, file: str) -> None:
        if "-00003-of" in file:
            raise HubUnreachable("the cable")
        real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(HubSource, "begin", broken)
        with pytest.raises(HubUnreachable, match="the cable"):
            convert_model(MODEL, "int4", out=out, discard_source=True)
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial").glob("*.safetensors")}
    assert kept
    hub.requests.clear()
    convert_model(MODEL, "int4", out=out, discard_source=True)
    assert kept.items() <= {path.name: path.stat().st_ino for path in out.iterdir()}.items()
    large = [path for method, path in hub.requests if method == "GET" and "model-0000" in path]
    whole = [path for path in large if "-00001-of" in path]
    assert len(whole) <= 1  # its header, at most
    verify(out)


def test_the_copy_in_the_cache_is_found_without_the_model(hub: FakeHub, tmp_path: Path) -> None:
    serve(hub, tmp_path)
    made = convert_model(MODEL, "int4", discard_source=True)
    sent = hub.bytes_sent
    assert converted_folder(MODEL, "int4").path == made.folder
    assert converted_folder(MODEL, "int4", COMMIT).path == made.folder
    assert hub.bytes_sent == sent
    assert made.folder.name.startswith("some--model-int4-")
    again = convert_model(MODEL, "int4", discard_source=True)
    assert (again.folder, again.source_bytes) == (made.folder, 0)


def test_a_model_that_is_in_the_local_cache_stays_there(hub: FakeHub, tmp_path: Path) -> None:
    serve(hub, tmp_path)
    plain = convert_model(MODEL, "int8")
    whole = cached_folder(MODEL, whole=True)
    assert whole is not None
    hub.requests.clear()
    made = convert_model(MODEL, "int8", out=tmp_path / "out", discard_source=True)
    assert not hub.requests
    assert contents(made.folder) == contents(plain.folder)
    assert cached_folder(MODEL, whole=True) == whole
    with pytest.raises(UsageError, match="folder of yours"):
        convert_model(str(tmp_path / "published"), "int4", out=tmp_path / "other", discard_source=True)


def test_a_file_that_is_not_what_its_header_said(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(hub, tmp_path, "bin")
    real = cache._from_hub

    def altered(*args: object) -> object:
        folder, place, source = real(*args)  # type: ignore[arg-type]
        odd = dataclasses.replace(folder.tensors[0], name="odd")
        source._folder = dataclasses.replace(folder, tensors=(*folder.tensors, odd))
        return folder, place, source

    monkeypatch.setattr(cache, "_from_hub", altered)
    with pytest.raises(ModelChanged, match="not what its header said"):
        convert_model(MODEL, "int4", out=tmp_path / "out", discard_source=True)
