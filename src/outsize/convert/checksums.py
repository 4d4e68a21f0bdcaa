"""``outsize-checksums.json``: what every tensor of a converted checkpoint must hash to.

SHA-256: the hub's own checksum for large files, and processors compute it at about a gigabyte a second and core, which
is more than a conversion writes. It says which tensor is damaged, and tells a finished shard from one cut short.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel, ModelNotFound
from outsize.models.files.byte_source import LocalFile
from outsize.models.files.folder import check_name, inside
from outsize.models.files.parse_json import MOST_BYTES, parse_json_object
from outsize.store.buffer import Memory
from outsize.store.layout import ALIGNMENT
from outsize.store.reader import DirectFiles

NAME = "outsize-checksums.json"
SCHEMA = 1
ALGORITHM = "sha256"
PIECE = 4 << 20  # bytes read at a time
HEADER = "the header"
LARGEST = 1 << 60  # bytes: no file is as large
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Range:
    """Some bytes of a file that are checked together: a tensor, the header before them, or a small file whole."""

    name: str
    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Made:
    """What a conversion was made of and by; another one never goes on with its work."""

    converter: int
    weights: str
    source: str  # what the user called it
    source_digest: str
    recipe: str


@dataclass(frozen=True, slots=True)
class Checksums:
    """The checksums of a converted folder, by file. ``complete`` once all files are in it."""

    made: Made
    files: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    complete: bool = False

    @property
    def nbytes(self) -> int:
        """All bytes that are covered."""
        return sum(part.bytes for parts in self.files.values() for part in parts)

    def to_json(self) -> bytes:
        """The file's content."""
        files = {name: [asdict(part) for part in parts] for name, parts in sorted(self.files.items())}
        body = {"schema": SCHEMA, "algorithm": ALGORITHM, "complete": self.complete, "made": asdict(self.made)}
        return (json.dumps({**body, "files": files}, indent=1) + "\n").encode()


def range_of(name: str, content: bytes) -> Range:
    """The range of a small file."""
    return Range(name, 0, len(content), hashlib.sha256(content).hexdigest())


def read_checksums(folder: Path) -> Checksums | None:
    """The checksums beside a checkpoint; None where there are none. Raises DamagedModel or UntrustedModel."""
    if not os.path.lexists(folder / NAME):
        return None
    with LocalFile(inside(folder, NAME), NAME) as source:
        if source.size > MOST_BYTES:
            raise DamagedModel(f"{NAME} is too large", need=f"at most {MOST_BYTES} bytes", have=f"{source.size} bytes")
        content = parse_json_object(source.read(0, source.size), NAME)
    if (content.get("schema"), content.get("algorithm")) != (SCHEMA, ALGORITHM):
        raise DamagedModel(f"{NAME} is not of this version", need=f"schema {SCHEMA}", have=str(content.get("schema")))
    try:
        made = Made(**content["made"])
        files = {
            check_name(name, "", NAME): tuple(_range(part) for part in parts)
            for name, parts in content["files"].items()
        }
        return Checksums(made, files, bool(content["complete"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedModel(f"{NAME} is not as outsize writes it: {error!r}") from error


def _range(part: Any) -> Range:
    found = Range(**part)
    numbers = (found.offset, found.bytes)
    if not all(type(number) is int and 0 <= number <= LARGEST for number in numbers) or not isinstance(found.name, str):
        raise TypeError(f"the range {part}")
    return found


def verify(folder: Path, progress: Progress = lambda done, total: None) -> Checksums:
    """Reads every byte of a converted folder past the page cache and compares; the checksums that it has.

    Raises ModelNotFound for a folder without checksums, DamagedModel with the first tensor that differs.
    """
    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such folder")
    checksums = read_checksums(folder)
    if checksums is None:
        raise ModelNotFound(
            f"{folder} has no {NAME}: there is nothing to compare its files with",
            remedy="a folder that outsize convert wrote; those from the hub are checked as they are downloaded",
        )
    if not checksums.complete:
        raise DamagedModel(f"{folder} was not finished", remedy="run outsize convert again: it goes on where it ended")
    check_files(folder, checksums.files, progress)
    return checksums


def check_files(
    folder: Path, files: dict[str, tuple[Range, ...]], progress: Progress = lambda done, total: None
) -> None:
    """Compares the files of a folder with their checksums. Raises DamagedModel with the first that differs."""
    for name, parts in files.items():
        size = sum(part.bytes for part in parts)
        have = inside(folder, name).stat().st_size
        if have != size:
            raise DamagedModel(f"{name} is not complete", need=f"{size} bytes", have=f"{have} bytes")
    total = sum(part.bytes for parts in files.values() for part in parts)
    done = 0
    opened = DirectFiles(folder, {})
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="outsize-verify")
    try:
        work = [(name, part) for name, parts in files.items() for part in parts]
        hashed = pool.map(lambda each: _hash(opened, *each), work)
        for (name, part), sha256 in zip(work, hashed, strict=True):
            if sha256 != part.sha256:
                where = f"{name} is" if part.name == name else f"{name}: {part.name} is"
                raise DamagedModel(f"{where} damaged: its checksum is wrong", remedy="convert it again")
            done += part.bytes
            progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
        opened.close()


def _hash(files: DirectFiles, name: str, part: Range) -> str:
    digest = hashlib.sha256()
    for piece in read_range(files, name, part.offset, part.bytes):
        digest.update(piece)
    return digest.hexdigest()


def read_range(files: DirectFiles, name: str, offset: int, nbytes: int) -> Iterator[memoryview]:
    """The bytes of a range, a few MB at a time, each valid until the next."""
    if not nbytes:
        return
    memory = Memory(min(PIECE, _up(nbytes)) + ALIGNMENT)
    while nbytes:
        skip = offset % ALIGNMENT
        size = min(PIECE, nbytes)
        files.read_into(name, offset - skip, memory.view[: _up(skip + size)], skip + size)
        yield memory.view[skip : skip + size]
        offset += size
        nbytes -= size


def _up(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
