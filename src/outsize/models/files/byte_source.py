"""The seam through which model files are read: some bytes at an offset, from a local file or from a remote one."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from outsize.errors import DamagedModel, ModelChanged


class ByteSource(Protocol):
    """A file of known name and size, read piece by piece. Headers are all that is read through it, never weights."""

    @property
    def name(self) -> str:
        """The file's name relative to the model's folder, for messages and for StoredTensor.file."""

    @property
    def size(self) -> int:
        """Bytes in the file."""

    @property
    def remote(self) -> bool:
        """Whether each read costs a request, so that readers keep their number down."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``; the caller keeps within ``size``. Raises OutsizeError."""


class LocalFile:
    """A ByteSource over a regular file, open until closed. Raises DamagedModel if it cannot be opened."""

    remote = False

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        try:
            # A pipe or a device in a model's folder must not block or act on being opened.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DamagedModel(f"{path}: cannot be opened: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise DamagedModel(f"{path}: not a regular file")
        self.size = status.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises DamagedModel or ModelChanged."""
        pieces = []
        while length > 0:
            try:
                piece = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise DamagedModel(f"{self.name}: cannot be read: {error.strerror}") from error
            if not piece:
                raise ModelChanged(f"{self.name}: became shorter while it was read", need=f"byte {offset}")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
