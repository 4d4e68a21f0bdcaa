"""A native checkpoint, on this machine or on the hub, into a folder of int8 or int4 weights.

Pieces of a few MB are read ahead, quantised on all cores and written meanwhile, so memory holds some buffers, never a
block; only a tensor that a ``.bin`` stores as a strided view is there whole, one at a time. Everything is written to
``OUT.partial``, shard by shard; a shard that is synced and has its name and checksums is finished. The folder gets its
own name last. Killed anywhere, the next run checks what is finished and goes on: the bytes are the same in the end,
because the recipe says them all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from outsize.convert import checksums
from outsize.convert.checksums import Checksums, Made
from outsize.convert.chunks import Held, Piece, ReadAhead, cut
from outsize.convert.packed_config import packed_config
from outsize.convert.recipe import Recipe, Shard, Step, make_recipe
from outsize.convert.shard_writer import ShardWriter
from outsize.convert.source import Source
from outsize.errors import DamagedModel, DoesNotFit, OutsizeError, UsageError
from outsize.files import UNFINISHED, is_disk_full, sync_folder, write_whole
from outsize.models.files.folder import CONFIG
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.sizes import format_size

CONVERTER = 1  # counted up whenever the same source would give other bytes
INDEX = "model.safetensors.index.json"
PARTIAL = ".partial"
SPARE = 16 << 20  # bytes of disk beside the shards: configuration, tokenizer, checksums
WRITES_AHEAD = 8
Progress = Callable[[int, int], None]


def convert(
    source: Source,
    tensors: Sequence[StoredTensor],
    spec: ModelSpec,
    weights: str,
    out: Path,
    progress: Progress = lambda done, total: None,
) -> Checksums:
    """Writes the converted folder ``out``, or finishes what an earlier run began; its checksums.

    ``progress`` gets the source bytes that are done, of how many. The source is closed in the end.

    Raises UsageError where ``out`` holds something else, DoesNotFit for a disk that is too small or full, ModelChanged
    where the source changes meanwhile, DamagedModel for weights that are no numbers, UnsupportedModel where nothing can
    be quantised.
    """
    try:
        recipe = make_recipe(tensors, spec, weights)
        made = Made(CONVERTER, weights, source.identity.name, source.identity.digest, recipe.digest)
        if (finished := _finished(out, made)) is not None:
            return finished
        with _translated(out), _own(out.with_name(out.name + PARTIAL)) as partial:
            return _Conversion(source, recipe, made, partial, progress).run(out)
    finally:
        source.close()


def is_converted(out: Path, source_digest: str, weights: str) -> bool:
    """Whether ``out`` is the finished conversion of that source by this version; its bytes are not read."""
    try:
        found = checksums.read_checksums(out)
    except (DamagedModel, OSError):
        return False
    return (
        found is not None
        and found.complete
        and (found.made.converter, found.made.weights, found.made.source_digest) == (CONVERTER, weights, source_digest)
    )


def _finished(out: Path, made: Made) -> Checksums | None:
    """The checksums of ``out`` if it is what would be made; None if it is not there. Raises UsageError otherwise."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = checksums.read_checksums(out) if out.is_dir() else None
    if found is not None and found.complete and found.made == made:
        return found
    what = f"{found.made.weights} weights of {found.made.source}" if found is not None else "something else"
    raise UsageError(f"{out} is there already and holds {what}", remedy="another --out, or remove it")


@contextmanager
def _translated(out: Path) -> Iterator[None]:
    """Errors of the file system that is written to, as ours."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            remedy = "free some space and run it again: finished shards are kept"
            raise DoesNotFit(f"the disk that holds {out.parent} is full", remedy=remedy) from error
        raise OutsizeError(f"{out} cannot be written: {error.strerror or error}") from error


@contextmanager
def _own(partial: Path) -> Iterator[Path]:
    """The folder of unfinished work, for this process alone. Raises OutsizeError where another one is at it."""
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutsizeError(
                f"another process is converting into {partial}", remedy="wait until it is done"
            ) from error
        yield partial
    finally:
        os.close(descriptor)


class _Conversion:
    """One run of a conversion."""

    def __init__(self, source: Source, recipe: Recipe, made: Made, partial: Path, progress: Progress) -> None:
        self._source = source
        self._recipe = recipe
        self._partial = partial
        self._progress = progress
        self._sums = Checksums(made)
        self._done = 0

    def run(self, out: Path) -> Checksums:
        """Everything, up to the folder's own name."""
        self._resume()
        left = [shard for shard in self._recipe.shards if shard.name not in self._sums.files]
        self._check_space(left)
        small = self._small_files()  # first, so that what cannot be copied is said before hours of work
        self._report(sum(s.source.nbytes for shard in self._recipe.shards if shard not in left for s in shard.steps))
        for place, shard in enumerate(left):
            self._shard(shard, frozenset(file for other in left[place + 1 :] for file in other.sources))
        for name, content in small.items():
            write_whole(self._partial / name, content)
            self._sums.files[name] = (checksums.range_of(name, content),)
        self._sums = replace(self._sums, complete=True)
        self._keep_sums()
        self._publish(out)
        return self._sums

    def _resume(self) -> None:
        """Takes over the shards that an earlier run finished, once their bytes are checked; anything else goes.

        Raises UsageError for a folder that no conversion began: what is in it is not ours to remove.
        """
        names = {entry.name for entry in self._partial.iterdir()}
        if checksums.NAME not in names and any(not name.endswith(UNFINISHED) for name in names):
            raise UsageError(f"{self._partial} is there already, and no conversion of ours", remedy="another --out")
        try:
            found = checksums.read_checksums(self._partial)
        except DamagedModel:
            found = None
        if found is not None and found.made == self._sums.made:
            for shard in self._recipe.shards:
                ranges = found.files.get(shard.name)
                if ranges is None:
                    continue
                try:
                    checksums.check_files(self._partial, {shard.name: ranges})
                except DamagedModel:
                    continue
                self._sums.files[shard.name] = ranges
        for entry in self._partial.iterdir():
            if entry.name not in self._sums.files and entry.name != self._source.scratch:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._keep_sums()

    def _check_space(self, left: Sequence[Shard]) -> None:
        need = sum(shard.nbytes for shard in left) + SPARE + self._source.extra_bytes
        have = shutil.disk_usage(self._partial).free
        if need > have:
            raise DoesNotFit(
                f"the converted weights do not fit the disk that holds {self._partial.parent}",
                need=format_size(need),
                have=format_size(have),
                remedy="free some space, or --out on a larger disk (OUTSIZE_CACHE for the cache)",
                shortfall_bytes=need - have,
            )

    def _small_files(self) -> dict[str, bytes]:
        config = packed_config(self._source.config, self._recipe)
        small = {CONFIG: config, **self._source.small_files()}
        return {**small, INDEX: self._recipe.index} if self._recipe.index is not None else small

    def _shard(self, shard: Shard, later: frozenset[str]) -> None:
        """Writes one shard and keeps its checksums. ``later``: source files that further shards need."""
        writing = _Writing(ShardWriter(self._partial, shard))
        try:
            for file in shard.sources:
                self._source.begin(file)
                self._file([step for step in shard.steps if step.source.file == file], writing)
                self._source.check([file])
                if file not in later:
                    self._source.end(file)
            self._sums.files[shard.name] = writing.writer.finish()
        finally:
            writing.close()
        sync_folder(self._partial)
        self._keep_sums()

    def _file(self, steps: Sequence[Step], writing: _Writing) -> None:
        """Everything that a shard takes from one source file."""
        pieces = [piece for step in steps for piece in cut(step, self._source.place(step.source))]
        reading = ReadAhead(self._source, pieces)
        try:
            for held in reading:
                self._piece(held, writing)
                self._report(held.piece.nbytes)
            writing.wait()
        finally:
            reading.close()

    def _piece(self, held: Held, writing: _Writing) -> None:
        """Quantises a piece, or passes it on as it is."""
        piece, name = held.piece, held.piece.step.source.name
        if piece.tensor.strides is not None:
            self._strided(held, writing)
            return
        if piece.step.packing is None:
            writing.put(name, held.view, held.release)
            return
        made = _quantised(piece, held.view)
        held.release()
        self._put_quantised(piece, made, writing)

    def _strided(self, held: Held, writing: _Writing) -> None:
        """The same for a strided tensor: laid out row-major, and written before the next is read."""
        piece = held.piece
        rows = _laid_out(held)
        held.release()
        if piece.step.packing is None:
            writing.put(piece.step.source.name, rows)
        else:
            self._put_quantised(piece, _quantised(piece, rows), writing)
        writing.wait()

    def _put_quantised(self, piece: Piece, made: tuple[memoryview, memoryview], writing: _Writing) -> None:
        name = piece.step.source.name
        for part, content in zip(("packed", "scale"), made, strict=True):
            writing.put(f"{name}_{part}", content)
        if piece.last:
            writing.put(f"{name}_shape", memoryview(struct.pack("<2q", *piece.step.source.shape[-2:])))

    def _report(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress(self._done, self._recipe.source_bytes)

    def _keep_sums(self) -> None:
        write_whole(self._partial / checksums.NAME, self._sums.to_json())
        sync_folder(self._partial)

    def _publish(self, out: Path) -> None:
        """Removes what was only needed on the way, and gives the folder its name."""
        for entry in self._partial.iterdir():
            if entry.name not in self._sums.files and entry.name != checksums.NAME:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        sync_folder(self._partial)
        self._partial.rename(out)
        sync_folder(out.parent)


class _Writing:
    """A thread that writes meanwhile; what it raises comes out of the next call."""

    def __init__(self, writer: ShardWriter) -> None:
        self.writer = writer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="outsize-convert-write")
        self._waiting: deque[Future[None]] = deque()

    def put(self, name: str, content: memoryview, release: Callable[[], None] = lambda: None) -> None:
        """Writes the next bytes of a tensor, and then calls ``release``."""

        def write() -> None:
            self.writer.put(name, content)
            release()

        self._waiting.append(self._pool.submit(write))
        while len(self._waiting) > WRITES_AHEAD:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Until all is written."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Ends the thread, and gives up the file if it was not finished."""
        self._pool.shutdown(cancel_futures=True)
        self.writer.close()


def _quantised(piece: Piece, view: memoryview) -> tuple[memoryview, memoryview]:
    """The bytes of words and of scales for some rows of a weight."""
    import torch

    from outsize.kernels.quantize import quantise

    packing, source = piece.step.packing, piece.step.source
    assert packing is not None
    weight = torch.frombuffer(view, dtype=torch.uint8)
    dtype: Any = getattr(torch, source.dtype)
    if weight.data_ptr() % dtype.itemsize:  # an old file may begin its data anywhere
        weight = weight.clone()
    rows = weight.view(dtype).view(-1, source.shape[-1])  # [rows, in]
    made = quantise(rows, packing.bits, packing.group, source.name)
    return _bytes_of(made.words), _bytes_of(made.scale)


def _laid_out(held: Held) -> memoryview:
    """The bytes of a strided tensor's elements in row-major order."""
    from outsize.store.views import tensor_at

    return _bytes_of(tensor_at(held.view, 0, held.piece.tensor).contiguous().view(-1))


def _bytes_of(tensor: Any) -> memoryview:
    import torch

    return memoryview(tensor.view(torch.uint8).numpy()).cast("B")
