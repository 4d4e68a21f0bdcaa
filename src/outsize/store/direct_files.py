"""Reads past the page cache, from files that are watched: what changes under us becomes an error, never other bytes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outsize.errors import DamagedModel, ModelChanged


class Files(Protocol):
    """The seam to stored bytes."""

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """Fills ``view`` from ``offset``, at least its first ``needed`` bytes; returns how many were read.

        Raises ModelChanged where the file ends before, DamagedModel where the drive fails.
        """

    def check(self, files: Iterable[str]) -> None:
        """Raises ModelChanged if one of the files is no longer what it was when first opened."""

    def close(self) -> None:
        """Closes all files; further reads raise."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from one that took its place."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        """The identity in a stat result."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Open:
    descriptor: int
    identity: Identity
    direct: bool


class DirectFiles:
    """Files of one folder, opened for direct reads (O_DIRECT), or buffered where the file system refuses those.

    Buffered reads give their pages back (POSIX_FADV_DONTNEED), so that a cyclic scan does not push out everything else.
    ``sizes``: the sizes that the headers were checked against; another size at opening is ModelChanged.
    """

    def __init__(self, folder: Path, sizes: dict[str, int], *, direct: bool = True) -> None:
        self._folder = folder
        self._sizes = sizes
        self._direct = direct
        self._opened: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._closed = False

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """As in Files. ``offset``, the view's address and its length must be multiples of 4096."""
        opened = self._open(file)
        done = 0
        while done < needed:
            try:
                got = os.preadv(opened.descriptor, [view[done:]], offset + done)
            except OSError as error:
                if opened.direct and error.errno == errno.EINVAL:
                    # The file system opens for direct reads and then refuses them, or a short read left an odd rest.
                    opened = self._without_direct(file)
                    continue
                raise self._failure(file, error) from error
            if got == 0:
                raise ModelChanged(f"{file} ended early", need=f"{offset + needed} bytes", have=f"{offset + done} bytes")
            done += got
        if not opened.direct:
            os.posix_fadvise(opened.descriptor, offset, done, os.POSIX_FADV_DONTNEED)
        return done

    def check(self, files: Iterable[str]) -> None:
        """As in Files: compares each path's device, inode, size and time of change with those at opening."""
        for file in files:
            opened = self._open(file)
            try:
                now = Identity.of(os.stat(self._folder / file))
            except OSError as error:
                raise ModelChanged(f"{file} vanished during the run", remedy="put it back and run again") from error
            if now != opened.identity:
                raise ModelChanged(f"{file} changed during the run", remedy="run again once it is complete")

    def close(self) -> None:
        """As in Files."""
        with self._lock:
            self._closed = True
            for opened in self._opened.values():
                os.close(opened.descriptor)
            self._opened.clear()

    def _open(self, file: str) -> _Open:
        with self._lock:
            if self._closed:
                raise ModelChanged(f"{file} is closed")
            if file not in self._opened:
                self._opened[file] = self._open_now(file, self._direct)
            return self._opened[file]

    def _open_now(self, file: str, direct: bool) -> _Open:
        path = self._folder / file
        try:
            descriptor, direct = _open_descriptor(path, direct)
        except OSError as error:
            raise self._failure(file, error) from error
        stat = os.fstat(descriptor)
        if file in self._sizes and stat.st_size != self._sizes[file]:
            os.close(descriptor)
            raise ModelChanged(f"{file} changed", need=f"{self._sizes[file]} bytes", have=f"{stat.st_size} bytes")
        return _Open(descriptor, Identity.of(stat), direct)

    def _without_direct(self, file: str) -> _Open:
        """The same file, buffered from now on; the old descriptor stays open, for another thread may be in it."""
        with self._lock:
            old = self._opened[file]
            if old.direct:
                new = self._open_now(file, direct=False)
                if new.identity != old.identity:
                    os.close(new.descriptor)
                    raise ModelChanged(f"{file} changed during the run")
                os.dup2(new.descriptor, old.descriptor)
                os.close(new.descriptor)
                self._opened[file] = _Open(old.descriptor, old.identity, direct=False)
            return self._opened[file]

    def _failure(self, file: str, error: OSError) -> DamagedModel:
        if isinstance(error, FileNotFoundError):
            return ModelChanged(f"{file} vanished", remedy="put it back and run again")
        return DamagedModel(f"{file} cannot be read: {error.strerror}", remedy="check the drive and the permissions")


def _open_descriptor(path: Path, direct: bool) -> tuple[int, bool]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT), True
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
    return os.open(path, flags), False
