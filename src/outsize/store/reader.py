"""Reads past the page cache, from files that are watched: what changes under us becomes an error, never other bytes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outsize.errors import DamagedModel, ModelChanged, OutsizeError
from outsize.models.files.folder import inside
from outsize.store.layout import ALIGNMENT

REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)  # what file systems say to O_DIRECT, at opening or at the first read


class Files(Protocol):
    """The seam to stored bytes."""

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """Fills ``view`` from ``offset``, at least its first ``needed`` bytes; returns how many were read.

        Raises ModelChanged where the file ends before, DamagedModel where the drive fails.
        """

    def check(self, files: Iterable[str]) -> None:
        """Raises ModelChanged if one of the files is no longer what it was when first opened."""

    def close(self) -> None:
        """Closes all files; further reads raise. Not while a read is under way."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a file from one that took its place, or from itself before a write."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        """The identity in a stat result."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(slots=True)
class _Open:
    descriptor: int
    identity: Identity
    direct: bool


class DirectFiles:
    """Files of one folder, opened for direct reads (O_DIRECT), or buffered where the file system refuses those.

    Buffered reads give their pages back (POSIX_FADV_DONTNEED), so that a cyclic scan does not push out everything else.
    ``sizes``: the sizes that the headers were checked against; another size at opening is ModelChanged. Links are
    followed as far as ``facts.folder.inside`` allows.
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
            direct = opened.direct  # as it was before this read: another thread may turn to buffered reads meanwhile
            try:
                got = os.preadv(opened.descriptor, [view[done:]], offset + done)
            except OSError as error:
                if direct and error.errno in REFUSALS:
                    self._without_direct(file, opened)  # it opens for direct reads, and then refuses them
                    continue
                raise _failure(file, error) from error
            if got == 0:
                have = f"{offset + done} bytes"
                raise ModelChanged(f"{file} ended early", need=f"{offset + needed} bytes", have=have)
            done += got
            if opened.direct and done < needed and done % ALIGNMENT:
                # Short, at the end of a file that shrank or of the file system's patience: the rest is not aligned.
                self._without_direct(file, opened)
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
                raise OutsizeError("the model was closed", remedy="load it again")
            if file not in self._opened:
                self._opened[file] = self._open_now(file)
            return self._opened[file]

    def _open_now(self, file: str) -> _Open:
        try:
            path = inside(self._folder, file)
        except DamagedModel as error:
            if os.path.lexists(self._folder / file):
                raise
            raise ModelChanged(f"{file} vanished", remedy="put it back and run again") from error
        try:
            descriptor, direct = _open_descriptor(path, self._direct)
        except OSError as error:
            raise _failure(file, error) from error
        stat = os.fstat(descriptor)
        if file in self._sizes and stat.st_size != self._sizes[file]:
            os.close(descriptor)
            raise ModelChanged(f"{file} changed", need=f"{self._sizes[file]} bytes", have=f"{stat.st_size} bytes")
        return _Open(descriptor, Identity.of(stat), direct)

    def _without_direct(self, file: str, opened: _Open) -> None:
        """The same open file, buffered from now on, for whoever reads from it."""
        with self._lock:
            if not opened.direct:
                return
            try:
                # By its descriptor: the path may lead to another file by now.
                buffered = os.open(f"/proc/self/fd/{opened.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _failure(file, error) from error
            os.dup2(buffered, opened.descriptor, inheritable=False)
            os.close(buffered)
            opened.direct = False


def _open_descriptor(path: Path, direct: bool) -> tuple[int, bool]:
    flags = os.O_RDONLY | os.O_CLOEXEC
    if direct and hasattr(os, "O_DIRECT"):
        try:
            return os.open(path, flags | os.O_DIRECT), True
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
    return os.open(path, flags), False


def _failure(file: str, error: OSError) -> DamagedModel:
    if isinstance(error, FileNotFoundError):
        return ModelChanged(f"{file} vanished", remedy="put it back and run again")
    return DamagedModel(f"{file} cannot be read: {error.strerror}", remedy="check the drive and the permissions")
