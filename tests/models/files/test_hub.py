from __future__ import annotations

import errno
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakehub
import pytest
import torch
from fakehub import COMMIT, FakeHub
from safetensors.torch import save

from outsize.errors import (
    DamagedModel,
    DoesNotFit,
    HubUnreachable,
    ModelChanged,
    ModelNotFound,
    OutsizeError,
    UntrustedModel,
    UsageError,
)
from outsize.models.files import download as downloading
from outsize.models.files import http_bounds
from outsize.models.files import hub as hub_module
from outsize.models.files.download import _is_right, download
from outsize.models.files.folder import open_folder
from outsize.models.files.hub import HubFile, cached_folder, remote_model, repository


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub talks to, a cache of its own, and no waiting between attempts."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.hf_api import HfApi

    with FakeHub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        assert HfApi().endpoint == server.url
        yield server


def tensors() -> dict[str, torch.Tensor]:
    return {f"h.{i}.w": torch.randn(300, 300) for i in range(8)}


def torch_bytes(content: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def sharded(kind: str) -> dict[str, bytes]:
    """Two shards, an index and a configuration."""
    content = tensors()
    suffix, prefix = ("safetensors", "model") if kind == "safetensors" else ("bin", "pytorch_model")
    write = save if kind == "safetensors" else torch_bytes
    first, second = dict(list(content.items())[:4]), dict(list(content.items())[4:])
    names = [f"{prefix}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    placed = {**dict.fromkeys(first, names[0]), **dict.fromkeys(second, names[1])}
    return {
        "config.json": b'{"model_type": "opt"}',
        f"{prefix}.{suffix}.index.json": json.dumps({"weight_map": placed}).encode(),
        names[0]: write(first),
        names[1]: write(second),
    }


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_headers_by_range_requests_only(hub: FakeHub, kind: str, tmp_path: Path) -> None:
    files = hub.models["some/model"] = sharded(kind)
    found = remote_model("some/model")
    assert (found.format, found.path, found.origin, found.config["model_type"]) == (kind, None, "some/model", "opt")
    assert len(found.tensors) == 8
    assert hub.bytes_sent < sum(map(len, files.values())) / 3
    assert len(hub.requests) <= 1 + 2 + 2 * 6
    assert not (tmp_path / "hub").exists()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert open_folder(tmp_path).tensors == found.tensors  # even the offsets, by PyTorch's rule of alignment


def test_a_long_header_takes_a_second_request(hub: FakeHub) -> None:
    names = {f"a.rather.long.name.of.a.layer.{i}": torch.zeros(50) for i in range(2000)}
    hub.models["some/model"] = {"config.json": b"{}", "model.safetensors": save(names)}
    assert len(remote_model("some/model", "main").tensors) == 2000
    assert len(hub.requests) == 1 + 1 + 2


def test_config_alone(hub: FakeHub) -> None:
    hub.models["some/model"] = {"config.json": b"{}"}
    assert remote_model("some/model").format == "none"
    with pytest.raises(ModelNotFound, match="no weights"):
        download("some/model")


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (401, "", ModelNotFound, "HF_TOKEN"),
        (401, "RepoNotFound", ModelNotFound, "private"),
        (403, "GatedRepo", ModelNotFound, "accept its terms"),
        (403, "", ModelNotFound, "refuses access"),
        (404, "RevisionNotFound", ModelNotFound, "no such revision"),
        (404, "EntryNotFound", ModelNotFound, "lacks|has no"),
        (500, "", HubUnreachable, "error 500"),
        (503, "", HubUnreachable, "error 503|cannot be asked"),
    ],
)
def test_refusals(hub: FakeHub, status: int, code: str, kind: type[OutsizeError], says: str) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(kind, match=says) as caught:
        remote_model("some/model")
    assert caught.value.remedy


def test_unknown_names(hub: FakeHub) -> None:
    hub.models["some/model"] = {"config.json": b"{}", "readme.md": b""}
    with pytest.raises(ModelNotFound, match="not on the hub"):
        remote_model("some/other")
    with pytest.raises(ModelNotFound, match="no such revision"):
        remote_model("some/model", "v9")
    with pytest.raises(ModelNotFound, match="neither a folder nor a hub id"):
        remote_model("not//an..id")
    with pytest.raises(ModelNotFound, match="not on the hub"):
        download("some/other")
    hub.models["some/model"] = {"readme.md": b""}
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        remote_model("some/model")
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        download("some/model")


def test_a_dead_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        remote_model("some/model")
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        download("some/model")


def test_a_hub_that_hangs(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 0.05)
    hub.hang_s = 0.5
    with pytest.raises(HubUnreachable, match="Timeout"):
        remote_model("some/model")


def test_a_hub_that_makes_no_sense(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = {"config.json": b"{}"}
    monkeypatch.setattr(fakehub, "describe", lambda *_: ["a list"])
    with pytest.raises(HubUnreachable, match="makes no sense"):
        remote_model("some/model")
    monkeypatch.setattr(fakehub, "describe", lambda *_: {"id": "some/model", "siblings": []})
    with pytest.raises(HubUnreachable, match="names no commit"):
        remote_model("some/model")


def test_broken_connections_are_resumed(hub: FakeHub) -> None:
    hub.models["some/model"] = sharded("safetensors")
    for fault in ("cut_next", "short_next", "fail_next"):
        setattr(hub, fault, 3)
        assert len(remote_model("some/model").tensors) == 8
        assert getattr(hub, fault) == 0
    hub.cut_next = 1000
    with pytest.raises(HubUnreachable, match="cannot be reached"):
        remote_model("some/model")
    hub.cut_next, hub.fail_next = 0, 1000
    with pytest.raises(HubUnreachable, match="error 500"):
        remote_model("some/model")


def test_a_hub_without_ranges(hub: FakeHub) -> None:
    hub.models["a/st"], hub.models["a/bin"] = sharded("safetensors"), sharded("torch")
    hub.ignore_ranges = True
    assert len(remote_model("a/st").tensors) == 8  # the start of a file is there; the rest is not waited for
    with pytest.raises(HubUnreachable, match="whole files only"):
        remote_model("a/bin")


def test_a_file_that_changes_on_the_hub(hub: FakeHub) -> None:
    from outsize.models.files.hub import RemoteFile

    hub.models["some/model"] = sharded("torch")
    files = repository("some/model")
    name = "pytorch_model-00001-of-00002.bin"
    hub.models["some/model"][name] += b"more"
    with pytest.raises(ModelChanged, match="changed on the hub"):
        RemoteFile(files, name, None).read(10, 20)


def test_the_index_of_a_remote_model_is_not_trusted(hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"a": "../other/model.safetensors"}}).encode()
    hub.models["some/model"] = {"config.json": b"{}", "model.safetensors.index.json": index}
    for act in (remote_model, download):
        with pytest.raises(UntrustedModel, match="not a plain file name"):
            act("some/model")


def test_download_brings_what_is_needed_and_no_more(hub: FakeHub) -> None:
    hub.models["some/model"] = sharded("safetensors") | {
        "pytorch_model.bin": b"x" * 50_000,
        "flax.msgpack.index.json": b"{}",
        "modeling_odd.py": b"raise SystemExit",
        "tokenizer.json": b"{}",
        "tokenizer.model": b"sp",
        "onnx/config.json": b"{}",
    }
    steps: list[tuple[int, int]] = []
    assert cached_folder("some/model") is None
    folder = download("some/model", progress=lambda done, total: steps.append((done, total)))
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer.model", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    }  # fmt: skip
    assert folder.name == COMMIT
    assert steps[-1][0] == steps[-1][1] == sum(path.stat().st_size for path in folder.iterdir())
    assert steps == sorted(steps)
    assert cached_folder("some/model") == cached_folder("some/model", "main", whole=True) == folder
    assert len(open_folder(folder).tensors) == 8
    sent = hub.bytes_sent
    assert download("some/model") == folder
    assert hub.bytes_sent - sent < 10_000  # no weights again


def test_the_cache_serves_a_dead_hub(hub: FakeHub) -> None:
    hub.models["some/model"] = sharded("torch")
    folder = download("some/model")
    hub.status = 500
    assert cached_folder("some/model") == folder
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert cached_folder("some/model") == folder
    assert cached_folder("some/model", whole=True) is None
    assert cached_folder("not//an..id") is None
    with pytest.raises(HubUnreachable):
        download("some/model")


def test_offline_mode(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.models["some/model"] = sharded("torch")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for act in (remote_model, download):
        with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
            act("some/model")


def test_a_wrong_checksum_is_fetched_again_once(hub: FakeHub) -> None:
    hub.models["some/model"] = sharded("safetensors")
    name = "model-00002-of-00002.safetensors"
    hub.spoil[name] = 1
    folder = download("some/model")
    assert (folder / name).read_bytes() == hub.models["some/model"][name]

    (folder / name).resolve().unlink()
    (folder / name).unlink()
    hub.spoil[name] = 100
    with pytest.raises(DamagedModel, match="damaged twice"):
        download("some/model")
    assert not (folder / name).exists()  # so that nobody takes it for good


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_small_files_of_other_content_are_not_kept(hub: FakeHub, name: str) -> None:
    hub.models["some/model"] = {**sharded("safetensors"), "tokenizer.json": b"{}"}
    hub.spoil[name] = 100
    with pytest.raises(DamagedModel):
        download("some/model")
    hub.spoil[name] = 0
    assert (download("some/model") / name).read_bytes() == hub.models["some/model"][name]


@pytest.mark.parametrize("etag", ['"../../../../evil"', '"/etc/passwd"', "", '".."', 'W/"a\\..\\b"'])
def test_an_etag_that_leads_out_of_the_cache(hub: FakeHub, etag: str, tmp_path: Path) -> None:
    hub.models["some/model"] = sharded("safetensors")
    hub.headers["X-Linked-Etag"] = etag
    if not etag:
        hub.headers["ETag"] = ""
        del hub.headers["X-Linked-Etag"]
    with pytest.raises(HubUnreachable, match="ETag that cannot be"):
        download("some/model")
    hub.headers.clear()
    assert download("some/model")


def test_a_hub_that_never_answers_is_not_asked_for_ever(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import http_backoff

    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(http_bounds, "ANSWER_S", 0.25)
    hub.hang_s = 1
    with pytest.raises(HubUnreachable, match="cannot be reached"), hub_module.translated("some/model"):
        http_backoff("GET", hub.url, timeout=0.1)
    assert len(hub.requests) <= 4
    with pytest.raises(HubUnreachable), hub_module.translated("some/model"):
        http_backoff("GET", hub.url, timeout=60)  # which a reader that waits in the kernel would wait for


def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = sharded("safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(downloading, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10)))
        with pytest.raises(DoesNotFit, match="HF_HOME") as caught:
            download("some/model")
        assert caught.value.shortfall_bytes

    def refuse(number: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, "no")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)

    refuse(errno.ENOSPC)
    with pytest.raises(DoesNotFit, match="disk is full"):
        download("some/model")
    refuse(errno.EACCES)
    with pytest.raises(OutsizeError, match="cannot be kept"):
        download("some/model")


@pytest.mark.parametrize("act", [remote_model, download])
def test_a_hub_that_asks_to_wait_for_a_day(hub: FakeHub, act: Callable[[str], object]) -> None:
    hub.models["some/model"] = sharded("safetensors")
    hub.status, hub.retry_after = 429, "86400"
    with pytest.raises(HubUnreachable, match=r"429|asks to wait 86400 s"):
        act("some/model")
    assert len(hub.requests) <= 3


def test_waits_on_the_way_to_a_file_are_bounded(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import http_backoff

    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    hub.status, hub.retry_after = 429, "86400"
    with pytest.raises(HubUnreachable), hub_module.translated("some/model"):
        http_backoff("GET", hub.url)
    assert sum(waited) <= http_bounds.MOST_WAIT_S


@pytest.mark.parametrize("act", [remote_model, download])
def test_a_hub_that_does_not_answer_in_time(
    hub: FakeHub, act: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.models["some/model"] = sharded("safetensors")
    hub.hang_s = 0.3
    monkeypatch.setattr(http_bounds, "ANSWER_S", 0.05)
    with pytest.raises(HubUnreachable, match="takes longer than"):
        act("some/model")


@pytest.mark.parametrize("act", [remote_model, download])
def test_an_answer_that_is_encoded_unasked(hub: FakeHub, act: Callable[[str], object]) -> None:
    hub.models["some/model"] = sharded("safetensors")
    hub.headers["Content-Encoding"] = "gzip"
    with pytest.raises(HubUnreachable, match="encodes its answer"):
        act("some/model")


def test_a_description_without_end(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = sharded("safetensors")
    monkeypatch.setattr(http_bounds, "MOST_API_BYTES", 100)
    with pytest.raises(HubUnreachable, match="sends more than it should; need at most 100 bytes"):
        remote_model("some/model")


def test_a_file_that_is_longer_than_it_may_be(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = sharded("safetensors")
    monkeypatch.setattr(downloading, "MOST_CONFIG_BYTES", 2)
    with pytest.raises(HubUnreachable, match="sends more than it should"):
        download("some/model")


def test_a_file_that_drips(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "ANSWER_S", -1.0)
    pieces = http_bounds._bounded_stream([b"x" * 10**6, b"x"], "some/model", None)
    monkeypatch.setattr(http_bounds, "LEAST_RATE", 1e6)
    taken = iter(pieces)
    assert len(next(taken)) == 10**6
    monkeypatch.setattr(http_bounds, "LEAST_RATE", 1e12)
    with pytest.raises(HubUnreachable, match="sends less than"):
        next(taken)


def test_bounds_within_bounds_leave_the_session_as_it_was(hub: FakeHub) -> None:
    from huggingface_hub.utils import get_session

    with hub_module.translated("a/b"):
        outer = get_session().send
        with hub_module.translated("a/b"):
            assert get_session().send is not outer
        assert get_session().send is outer
    assert "send" not in vars(get_session())


@pytest.mark.parametrize("token", ["hf_SECRETä", "“hf_SECRET”"])
def test_a_token_that_cannot_be_one_is_not_shown(hub: FakeHub, token: str) -> None:
    hub.models["some/model"] = sharded("safetensors")
    for ask in (download, remote_model):
        with pytest.raises(UsageError, match="HF_TOKEN has a character") as error:
            ask("some/model", token=token)
        assert "SECRET" not in str(error.value)


def test_a_password_in_the_endpoint_is_not_shown() -> None:
    said: list[str] = []
    log, handler = logging.getLogger("huggingface_hub.utils._http"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with http_bounds.bounded("some/model"):
            log.warning("HTTP Error 500 thrown while requesting HEAD http://user:secret@hub/some/model")
            log.warning("Rate limited. Waiting 2.0s before retry [Retry 1/5].")
    finally:
        log.removeHandler(handler)
    assert said == ["Rate limited. Waiting 2.0s before retry [Retry 1/5]."]
    assert not log.filters


@pytest.mark.parametrize("change", [{"size": "9"}, {"size": -5}, {"size": 0.5}, {"rfilename": 5}], ids=str)
def test_a_file_that_cannot_be(hub: FakeHub, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = sharded("safetensors")
    honest = fakehub.describe

    def describe(model_id: str, files: dict[str, bytes]) -> dict[str, Any]:
        said = honest(model_id, files)
        said["siblings"][0].update(change)
        return said

    monkeypatch.setattr(fakehub, "describe", describe)
    with pytest.raises(HubUnreachable, match="a file that cannot be"):
        remote_model("some/model")


@pytest.mark.parametrize("sha", ["../../../evil", "", "main", "/tmp/evil"])
def test_a_commit_that_is_none(hub: FakeHub, sha: str, tmp_path: Path) -> None:
    hub.models["some/model"] = sharded("safetensors")
    hub.sha = sha
    with pytest.raises(HubUnreachable, match="names no commit"):
        download("some/model")
    assert {path.name for path in tmp_path.iterdir()} <= {"hub"}


def test_a_repository_of_very_many_files(hub: FakeHub) -> None:
    hub.models["some/model"] = {**sharded("safetensors"), **{f"{i}.json": b"{}" for i in range(1001)}}
    with pytest.raises(DamagedModel, match="too many small files"):
        download("some/model")


def test_files_whose_size_the_hub_does_not_say_are_no_weights(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.models["some/model"] = {**sharded("safetensors"), "notes.txt": b"hello"}
    honest = fakehub.describe

    def describe(model_id: str, files: dict[str, bytes]) -> dict[str, Any]:
        said = honest(model_id, files)
        for sibling in said["siblings"]:
            if sibling["rfilename"] == "notes.txt":
                del sibling["size"]
        return said

    monkeypatch.setattr(fakehub, "describe", describe)
    assert "notes.txt" not in repository("some/model").files
    assert "config.json" in repository("some/model").files


def test_a_file_of_another_size_is_not_right(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    assert not _is_right(tmp_path / "file", HubFile("file", 4, ""))
