"""Single rows of a stored tensor, read where they lie: an embedding need not be in memory to be looked up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from outsize.models.spec import StoredTensor
from outsize.store.buffer import Memory
from outsize.store.layout import lay_out
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
        self._kept: dict[tuple[str, int, int], bytes] = {}  # by file, offset and row
        self._kept_bytes = self._keep_bytes = 0
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="outsize-rows")

    def read(self, matrix: StoredTensor, rows: Sequence[int]) -> bytearray:
        """The bytes of the given rows of a stored matrix [rows, width], in the order given. Raises as Files does."""
        width = matrix.nbytes // matrix.shape[0]
        gathered = bytearray(width * len(rows))
        target = memoryview(gathered)

        def one(place: int) -> int:
            key = (matrix.file, matrix.offset, rows[place])
            known = self._kept.get(key)
            if known is not None:
                target[place * width : (place + 1) * width] = known
                return 0
            row = StoredTensor("", "uint8", (width,), matrix.file, matrix.offset + rows[place] * width, width)
            (extent,) = lay_out([row]).extents
            memory = Memory(extent.length)
            got = self._files.read_into(extent.file, extent.offset, memory.view, extent.needed)
            start = row.offset - extent.offset
            target[place * width : (place + 1) * width] = memory.view[start : start + width]
            return got

        self.bytes_read += sum(self._pool.map(one, range(len(rows))))
        self._files.check([matrix.file])
        for place, number in enumerate(rows):
            if self._kept_bytes + width > self._keep_bytes:
                break
            key = (matrix.file, matrix.offset, number)
            if key not in self._kept:
                self._kept[key] = bytes(target[place * width : (place + 1) * width])
                self._kept_bytes += width
        return gathered

    def keep(self, nbytes: int) -> None:
        """Keeps rows that are read from now on, up to so many bytes of them; none of those from before."""
        self._kept.clear()
        self._kept_bytes, self._keep_bytes = 0, nbytes

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
