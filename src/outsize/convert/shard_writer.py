"""One shard of a converted checkpoint on its way to the drive: under a temporary name, checksummed, synced, renamed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from outsize.convert.checksums import HEADER, Range
from outsize.convert.recipe import Shard
from outsize.files import UNFINISHED

SYNC_EVERY = 128 << 20  # bytes after which what was written is synced, and its pages given back


class ShardWriter:
    """Takes the bytes of each tensor in order, tensors in any order. Used by one thread at a time; raises OSError."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self._shard = shard
        self._path = folder / shard.name
        self._temporary = folder / (shard.name + UNFINISHED)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o644)
        self._placed = {tensor.name: tensor for tensor in shard.placed}
        self._written = dict.fromkeys(self._placed, 0)
        self._hashes = {name: hashlib.sha256() for name in self._placed}
        self._unsynced = 0
        self._write(shard.header, 0)

    def put(self, name: str, content: memoryview) -> None:
        """The next bytes of a tensor."""
        self._hashes[name].update(content)
        self._write(content, self._placed[name].offset + self._written[name])
        self._written[name] += len(content)

    def finish(self) -> tuple[Range, ...]:
        """Syncs the file and gives it its name; the checksums of its header and its tensors."""
        for name, tensor in self._placed.items():
            assert self._written[name] == tensor.nbytes, name
        self._sync()
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._temporary.replace(self._path)
        header = Range(HEADER, 0, len(self._shard.header), hashlib.sha256(self._shard.header).hexdigest())
        sums = (
            Range(name, tensor.offset, tensor.nbytes, self._hashes[name].hexdigest())
            for name, tensor in self._placed.items()
        )
        return (header, *sums)

    def close(self) -> None:
        """Gives up a file that was not finished; a second call, or one after ``finish``, does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._temporary.unlink(missing_ok=True)

    def _write(self, content: bytes | memoryview, offset: int) -> None:
        left = memoryview(content)
        while left:
            done = os.pwrite(self._descriptor, left, offset)
            left, offset = left[done:], offset + done
        self._unsynced += len(content)
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        """Written pages must not pile up in memory, nor push out what is in use."""
        os.fdatasync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0
