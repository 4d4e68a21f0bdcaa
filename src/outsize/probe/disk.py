"""The drive's rate through the runtime's own stream: direct reads, several threads, a few MB a read, reused buffers."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from outsize.errors import DoesNotFit
from outsize.models.spec import StoredTensor
from outsize.planner.weight_group import WeightGroup
from outsize.sizes import format_size
from outsize.store.buffer import Memory
from outsize.store.chunk_readers import CHUNK as READ_BYTES
from outsize.store.layout import lay_out
from outsize.store.reader import DirectFiles, Files
from outsize.store.stream import Stream

CHUNK = 64 << 20  # bytes acquired at once, like a block's
SLOTS = 4
MOST_CHUNKS = 32  # 2 GiB
LEAST_CHUNKS = 8
FILE_CHUNKS = 16  # of the temporary file: 1 GiB
SPARE_BYTES = 1 << 30  # left free on the drive beside the temporary file
MOST_SECONDS = 8.0
WINDOWS = 5  # parts of the reading whose rates the median is taken of
PAGE = 4096
WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class DiskRate:
    """What was measured: the median rate, the least and the most, the bytes read, and from what."""

    bytes_per_s: float
    least: float
    most: float
    nbytes: int
    direct: bool
    source: str


def disk_rate(folder: Path) -> DiskRate:
    """Reads the weights in a folder, or else a temporary file made there, which has no name and cannot be left behind.

    Raises OSError where neither can be read or written, DoesNotFit where there is no room for the file.
    """
    stored = chunks_of(weight_files(folder))
    if len(stored) >= LEAST_CHUNKS:
        direct = is_direct(folder / stored[0].file)
        return _read(DirectFiles(folder, {}), stored[:MOST_CHUNKS], f"the weights in {folder}", direct)
    with temporary_file(existing(folder), FILE_CHUNKS * CHUNK) as descriptor:
        file = OneFile(descriptor)
        return _read(file, chunks_of([file.path]), f"a temporary file in {existing(folder)}", is_direct(file.path))


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder, the largest first."""
    files = [p for p in folder.iterdir() if p.suffix in WEIGHTS and p.is_file()] if folder.is_dir() else []
    return sorted(files, key=lambda p: -p.stat().st_size)


def chunks_of(files: Sequence[Path]) -> list[StoredTensor]:
    """The whole chunks in files, in order."""
    return [
        StoredTensor(f"{file.name}@{offset}", "uint8", (CHUNK,), file.name, offset, CHUNK)
        for file in files
        for offset in range(0, file.stat().st_size - CHUNK + 1, CHUNK)
    ]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def is_direct(file: Path) -> bool:
    """Whether the file can be read past the page cache."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except (OSError, AttributeError):
        return False
    try:
        return os.preadv(descriptor, [Memory(PAGE).view], 0) >= 0
    except OSError:
        return False
    finally:
        os.close(descriptor)


def folder_is_direct(folder: Path) -> bool:
    """Whether files in a folder can be read past the page cache. Raises OSError where that cannot be tried."""
    files = weight_files(folder)
    if files:
        return is_direct(files[0])
    with tempfile.TemporaryFile(dir=existing(folder)) as file:
        file.write(bytes(PAGE))
        file.flush()
        return is_direct(Path("/proc/self/fd") / str(file.fileno()))


@contextmanager
def temporary_file(folder: Path, nbytes: int) -> Iterator[int]:
    """The descriptor of a file of random bytes that is on the drive and not in the page cache."""
    figures = os.statvfs(folder)
    free = figures.f_bavail * figures.f_frsize
    if free < nbytes + SPARE_BYTES:
        raise DoesNotFit(
            f"no room in {folder} for a file to read",
            need=format_size(nbytes + SPARE_BYTES),
            have=format_size(free),
            remedy="--path with a folder that has weights, or more room",
        )
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        written = 0
        while written < nbytes:
            # New bytes each time: some drives and file systems keep equal ones once.
            written += file.write(os.urandom(min(READ_BYTES, nbytes - written)))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.fileno()


class OneFile:
    """The seam to stored bytes (``store.direct_files.Files``) for a file without a name: opened again through /proc."""

    def __init__(self, descriptor: int) -> None:
        self.path = Path(f"/proc/self/fd/{descriptor}")
        flags = os.O_RDONLY | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags | os.O_DIRECT if is_direct(self.path) else flags)

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        """Fills the view."""
        done = 0
        while done < needed:
            done += os.preadv(self._descriptor, [view[done:]], offset + done)
        return done

    def check(self, files: Iterable[str]) -> None:
        """Nobody else can reach the file."""

    def close(self) -> None:
        """Closes it, not the descriptor that was given."""
        os.close(self._descriptor)


def _read(files: Files, stored: Sequence[StoredTensor], source: str, direct: bool) -> DiskRate:
    """One pass through a stream, with the clock read after every chunk."""
    groups = [
        (WeightGroup(t.name, (t.name,), t.nbytes, t.nbytes, CHUNK, "native", "disk", "ram", "streamed"), lay_out([t]))
        for t in stored
    ]
    stream = Stream(files, groups, slots=SLOTS, slot_bytes=CHUNK)
    try:
        began = time.monotonic()
        stream.start()
        marks = []
        for index in range(len(groups)):
            stream.acquire(index)
            stream.release(index)
            marks.append(time.monotonic())
            if marks[-1] - began > MOST_SECONDS:
                break
    finally:
        stream.close()
        files.close()
    rates = window_rates(marks) or [len(marks) * CHUNK / (marks[-1] - began)]
    return DiskRate(statistics.median(rates), min(rates), max(rates), len(marks) * CHUNK, direct, source)


def window_rates(marks: Sequence[float]) -> list[float]:
    """Bytes per second in up to ``WINDOWS`` stretches; ``marks`` are the times at which a chunk was there.

    Not from the first slots: they are new memory, whose pages the kernel still has to clear.
    """
    first, last = SLOTS - 1, len(marks) - 1
    edges = sorted({first + i * (last - first) // WINDOWS for i in range(WINDOWS + 1)}) if last > first else []
    return [(b - a) * CHUNK / (marks[b] - marks[a]) for a, b in pairwise(edges)]
