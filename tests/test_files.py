from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from outsize.files import is_disk_full, sync_folder, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"before")
    write_whole(path, "é")
    assert path.read_bytes() == "é".encode()
    sync_folder(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(path, "after")
    assert is_disk_full(raised.value)
    assert not is_disk_full(OSError(errno.EIO, "broken"))
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
