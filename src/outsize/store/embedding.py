"""Single rows of a stored tensor, read where they lie: an embedding need not be in memory to be looked up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from outsize.models.dtypes import dtype_bytes
from outsize.models.spec import StoredTensor
from outsize.models.strided import FORMATS, elements
from outsize.store.buffer import Memory
from outsize.store.layout import GAP, lay_out
from outsize.store.reader import Files

if TYPE_CHECKING:
    from collections.abc import Sequence

READERS = 8  # small reads wait for the drive, not for its rate: more of them at once


class RowReader:
    """Reads rows of stored matrices. ``bytes_read`` counts what came from the drive, alignment included.

    ``keep``: rows of a dataset's commonest tokens are read once for it, not once for every micro-batch.
    """

    def __init__(self, files: Files) -> None:
        self.bytes_read = 0
        self._files = files
        self._kept: dict[tuple[StoredTensor, int], bytes] = {}  # by matrix and row
        self._kept_bytes = self._keep_bytes = 0
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="outsize-rows")

    def read(self, matrix: StoredTensor, rows: Sequence[int]) -> bytearray:
        """The bytes of the given rows of a stored matrix [rows, width], in the order given. Raises as Files does."""
        width = matrix.shape[1] * dtype_bytes(matrix.dtype)
        gathered = bytearray(width * len(rows))
        target = memoryview(gathered)
        missing = []
        for place, number in enumerate(rows):
            known = self._kept.get((matrix, number))
            if known is None:
                missing.append(place)
            else:
                target[place * width : (place + 1) * width] = known

        def one(place: int) -> int:
            got, row = self._read(_row(matrix, rows[place]))
            target[place * width : (place + 1) * width] = row
            return got

        if matrix.strides is not None and matrix.strides[1] * dtype_bytes(matrix.dtype) > GAP:
            self.bytes_read += self._read_columns(matrix, {place: rows[place] for place in missing}, target)
        else:
            self.bytes_read += sum(self._pool.map(one, missing))
        self._files.check([matrix.file])
        for place, number in enumerate(rows):
            if self._kept_bytes + width > self._keep_bytes:
                break
            if (matrix, number) not in self._kept:
                self._kept[matrix, number] = bytes(target[place * width : (place + 1) * width])
                self._kept_bytes += width
        return gathered

    def keep(self, nbytes: int) -> None:
        """Keeps rows that are read from now on, up to so many bytes of them; none of those from before."""
        self._kept.clear()
        self._kept_bytes, self._keep_bytes = 0, nbytes

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _read(self, tensor: StoredTensor) -> tuple[int, bytes]:
        """Bytes that came from the drive for a tensor of one dimension, and its elements."""
        (extent,) = lay_out([tensor]).extents
        memory = Memory(extent.length)
        got = self._files.read_into(extent.file, extent.offset, memory.view, extent.needed)
        start = tensor.offset - extent.offset
        return got, b"".join(elements(memory.view[start : start + tensor.nbytes], tensor))

    def _read_columns(self, matrix: StoredTensor, rows: dict[int, int], target: memoryview) -> int:
        """Fills the rows, by their places in ``target``, of a matrix that lies column after column; bytes read.

        Each element of a row is on a page of its own, so that rows near each other are read together, by columns.
        """
        assert matrix.strides is not None
        size, width = dtype_bytes(matrix.dtype), matrix.shape[1]
        down, across = matrix.strides
        values = target.cast(FORMATS[size])  # type: ignore[call-overload]
        runs: list[list[int]] = []  # places whose rows lie near each other
        for place in sorted(rows, key=lambda place: rows[place]):
            if runs and (rows[place] - rows[runs[-1][-1]]) * down * size <= GAP:
                runs[-1].append(place)
            else:
                runs.append([place])

        def one(run: list[int], column: int) -> int:
            first, last = rows[run[0]], rows[run[-1]]
            span = (last - first) * down + 1
            start = matrix.offset + (first * down + column * across) * size
            got, raw = self._read(StoredTensor("", matrix.dtype, (span,), matrix.file, start, span * size))
            found = memoryview(raw).cast(FORMATS[size])  # type: ignore[call-overload]
            for place in run:
                values[place * width + column] = found[(rows[place] - first) * down]
            return got

        return sum(sum(self._pool.map(one, [run] * width, range(width))) for run in runs)


def _row(matrix: StoredTensor, number: int) -> StoredTensor:
    """One row of a matrix, as the file has it."""
    size, width = dtype_bytes(matrix.dtype), matrix.shape[1]
    down, across = matrix.strides or (width, 1)
    span = ((width - 1) * across + 1) * size
    start = matrix.offset + number * down * size
    return StoredTensor("", matrix.dtype, (width,), matrix.file, start, span, None if across == 1 else (across,))
