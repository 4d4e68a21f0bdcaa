"""Single rows of a stored tensor, read where they lie: an embedding need not be in memory to be looked up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from outsize.facts.model import StoredTensor
from outsize.store.direct_files import Files
from outsize.store.layout import lay_out
from outsize.store.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

READERS = 8  # small reads wait for the drive, not for its rate: more of them at once


class RowReader:
    """Reads rows of stored matrices. ``bytes_read`` counts what came from the drive, alignment included."""

    def __init__(self, files: Files) -> None:
        self.bytes_read = 0
        self._files = files
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="outsize-rows")

    def read(self, matrix: StoredTensor, rows: Sequence[int]) -> bytearray:
        """The bytes of the given rows of a stored matrix [rows, width], in the order given. Raises as Files does."""
        width = matrix.nbytes // matrix.shape[0]
        gathered = bytearray(width * len(rows))
        target = memoryview(gathered)

        def one(place: int) -> int:
            row = StoredTensor("", "uint8", (width,), matrix.file, matrix.offset + rows[place] * width, width)
            (extent,) = lay_out([row]).extents
            memory = Memory(extent.length)
            got = self._files.read_into(extent.file, extent.offset, memory.view, extent.needed)
            start = row.offset - extent.offset
            target[place * width : (place + 1) * width] = memory.view[start : start + width]
            return got

        self.bytes_read += sum(self._pool.map(one, range(len(rows))))
        self._files.check([matrix.file])
        return gathered

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()
