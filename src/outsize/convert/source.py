"""Where a conversion reads from: a folder on this machine, or a hub model that comes and goes shard by shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from outsize.convert.checksums import NAME as CHECKSUMS
from outsize.errors import DamagedModel
from outsize.models.files.folder import CONFIG, ModelFolder, inside
from outsize.models.files.small_files import SMALL_SUFFIXES, check_small_file, check_small_files
from outsize.models.spec import StoredTensor
from outsize.store.reader import DirectFiles


@dataclass(frozen=True, slots=True)
class Identity:
    """Tells one source from another: what the user calls it, and a digest of what its content depends on."""

    name: str
    digest: str


class Source(Protocol):
    """The seam to a checkpoint that is converted. Calls for one file come between its ``begin`` and its ``end``."""

    @property
    def identity(self) -> Identity:
        """Which checkpoint this is."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""

    @property
    def scratch(self) -> str:
        """Name of the entry of the unfinished folder that is the source's own; "" for none."""

    @property
    def extra_bytes(self) -> int:
        """Most bytes of disk that are taken meanwhile, beside the output."""

    def begin(self, file: str) -> None:
        """Makes a file's bytes ready to be read. Raises OutsizeError."""

    def place(self, tensor: StoredTensor) -> StoredTensor:
        """The tensor with the offset at which its bytes lie."""

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """As in direct_files.Files."""

    def check(self, files: Iterable[str]) -> None:
        """Raises ModelChanged if a file is no longer what it was at first."""

    def end(self, file: str) -> None:
        """A file is not needed any more."""

    def small_files(self) -> dict[str, bytes]:
        """Tokenizer, generation settings and the like, by name; never code, never what lies outside the folder."""

    def close(self) -> None:
        """Ends all reading."""


class FolderSource:
    """A checkpoint in a folder. Its files stay."""

    scratch = ""
    extra_bytes = 0

    def __init__(self, folder: ModelFolder) -> None:
        assert folder.path is not None
        self._path = folder.path
        self.identity = identify(folder)
        self.config = dict(folder.config)
        self._files = DirectFiles(folder.path, {file.name: file.size for file in folder.files})
        self.read_into = self._files.read_into
        self.check = self._files.check
        self.close = self._files.close

    def begin(self, file: str) -> None:
        """As in Source: opens it, so that a change from now on is seen."""
        self._files.check([file])

    def place(self, tensor: StoredTensor) -> StoredTensor:
        """As in Source."""
        return tensor

    def end(self, file: str) -> None:
        """As in Source: nothing."""

    def small_files(self) -> dict[str, bytes]:
        """As in Source. Raises UntrustedModel for a link that leaves the folder."""
        return read_small_files(self._path)


def read_small_files(folder: Path) -> dict[str, bytes]:
    """What is copied along with a checkpoint, by name."""
    check_small_files(folder)
    return {name: check_small_file(folder, name).read_bytes() for name in small_names(folder)}


def small_names(folder: Path) -> list[str]:
    """Names of the files that are copied along: settings, tokenizers, templates. Not config.json: it is made anew."""
    made = (CONFIG, CHECKSUMS)
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name.endswith(SMALL_SUFFIXES)
        and not entry.name.endswith(".index.json")
        and entry.name not in made
        and entry.is_file()
    )


def identify(folder: ModelFolder) -> Identity:
    """The identity of a local checkpoint: repository and commit in the Hugging Face cache, else names, sizes, times.

    Files of any other folder are told apart by the time of their last change: nothing is read for it.
    """
    if folder.path is None:
        raise DamagedModel(f"{folder.origin}: is not on this machine")
    path = folder.path.resolve()
    if (found := hub_snapshot(path)) is not None:
        return identify_commit(*found)
    names = sorted({CONFIG, *(file.name for file in folder.files), *small_names(path)})
    files = []
    for name in names:
        status = inside(path, name).stat()
        files.append((name, status.st_size, status.st_mtime_ns))
    return Identity(path.name, _digest({"folder": str(path), "files": files}))


def identify_commit(model_id: str, commit: str) -> Identity:
    """The identity of a hub model at a commit."""
    return Identity(model_id, _digest({"model": model_id, "commit": commit}))


def hub_snapshot(path: Path) -> tuple[str, str] | None:
    """Id and commit of ``models--OWNER--NAME/snapshots/COMMIT`` in the Hugging Face cache; None for another folder."""
    repository = path.parent.parent.name
    if path.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1), path.name


def _digest(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
