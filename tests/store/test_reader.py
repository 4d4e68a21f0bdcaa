"""Direct reads: the right bytes or an error, whatever the file system does."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from outsize.errors import DamagedModel, ModelChanged, OutsizeError, UntrustedModel
from outsize.store.buffer import Memory
from outsize.store.reader import DirectFiles

SIZE = 3 * 4096 + 1234
CONTENT = bytes(place * place % 251 for place in range(SIZE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(CONTENT)
    return tmp_path / "model"


def whole(files: DirectFiles) -> bytes:
    memory = Memory(4 * 4096)
    assert files.read_into("a", 0, memory.view, SIZE) >= SIZE
    return bytes(memory.view[:SIZE])


@pytest.mark.parametrize("direct", [True, False])
def test_a_whole_file_with_an_odd_end(folder: Path, direct: bool) -> None:
    files = DirectFiles(folder, {"a": SIZE}, direct=direct)
    assert whole(files) == CONTENT
    files.check(["a"])
    memory = Memory(8192)
    files.read_into("a", 8192, memory.view[:8192], SIZE - 8192)
    assert bytes(memory.view[: SIZE - 8192]) == CONTENT[8192:]
    files.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("where", ["open", "read"])
def test_file_systems_that_refuse_direct_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    direct: set[int] = set()
    real_open, real_preadv, real_dup2 = os.open, os.preadv, os.dup2
    given_back: list[tuple[int, int]] = []

    def fussy_open(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT and where == "open":
            raise OSError(code, os.strerror(code))
        descriptor = real_open(path, flags, *rest)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def fussy_preadv(descriptor: int, views: Any, offset: int) -> int:
        if descriptor in direct:
            raise OSError(code, os.strerror(code))
        return real_preadv(descriptor, views, offset)

    def dup2(old: int, new: int, **options: Any) -> int:
        direct.discard(new)
        return real_dup2(old, new, **options)

    monkeypatch.setattr(os, "open", fussy_open)
    monkeypatch.setattr(os, "preadv", fussy_preadv)
    monkeypatch.setattr(os, "dup2", dup2)
    monkeypatch.setattr(os, "posix_fadvise", lambda d, offset, length, advice: given_back.append((offset, length)))
    files = DirectFiles(folder, {"a": SIZE})
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(whole(files))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert given_back
    files.check(["a"])
    files.close()


@pytest.mark.parametrize("most", [1, 1000, 4096, 5000])
def test_reads_that_stop_short(folder: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    real = os.preadv
    # What a kernel may do: fill less than was asked for.
    monkeypatch.setattr(os, "preadv", lambda *asked: min(real(*asked), most))
    files = DirectFiles(folder, {"a": SIZE})
    assert whole(files) == CONTENT
    files.close()


def test_a_file_that_shrinks(folder: Path) -> None:
    files = DirectFiles(folder, {"a": SIZE})
    whole(files)
    os.truncate(folder / "a", 5000)
    with pytest.raises(ModelChanged, match=r"a ended early; need 13522 bytes, have 5000 bytes"):
        whole(files)
    with pytest.raises(ModelChanged, match="changed during the run"):
        files.check(["a"])
    files.close()


def test_another_size_than_the_headers_saw(folder: Path) -> None:
    with pytest.raises(ModelChanged, match="a changed; need 7 bytes"):
        whole(DirectFiles(folder, {"a": 7}))


def test_a_file_that_is_gone(folder: Path) -> None:
    files = DirectFiles(folder, {"a": SIZE})
    with pytest.raises(ModelChanged, match="b vanished"):
        files.check(["b"])
    whole(files)
    (folder / "a").unlink()
    with pytest.raises(ModelChanged, match="a vanished during the run"):
        files.check(["a"])
    files.close()


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(CONTENT)
    (folder / "b").symlink_to(folder.parent / "secret")
    (folder / "c").symlink_to(folder.parent / "nowhere")
    files = DirectFiles(folder, {})
    with pytest.raises(UntrustedModel):
        files.read_into("b", 0, Memory(4096).view, 4096)
    with pytest.raises(DamagedModel, match="cannot be opened"):
        files.read_into("c", 0, Memory(4096).view, 4096)


def test_no_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any, flags: int, *_: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DamagedModel, match="a cannot be read: Permission denied"):
        whole(DirectFiles(folder, {"a": SIZE}))


def test_a_drive_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DamagedModel, match="a cannot be read: Input/output error") as caught:
        whole(DirectFiles(folder, {"a": SIZE}))
    assert not isinstance(caught.value, ModelChanged)


def test_closed_files_cannot_be_read(folder: Path) -> None:
    files = DirectFiles(folder, {"a": SIZE})
    whole(files)
    files.close()
    with pytest.raises(OutsizeError, match="closed"):
        whole(files)
    files.close()


def test_a_refusal_that_another_thread_has_dealt_with_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.bin").write_bytes(bytes(range(256)) * 32)
    files = DirectFiles(tmp_path, {})
    preadv, refused = os.preadv, []

    def fussy(descriptor: int, views: list[memoryview], offset: int) -> int:
        if not refused:
            refused.append(offset)
            files._opened["model.bin"].direct = False  # as another thread's _without_direct leaves it
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", fussy)
    memory = Memory(8192)
    assert files.read_into("model.bin", 0, memory.view, 8192) == 8192
    assert bytes(memory.view[:256]) == bytes(range(256))
    files.close()
