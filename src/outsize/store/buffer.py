"""Buffers that the drive can write into directly and the kernels read fast: page-aligned, on huge pages."""

from __future__ import annotations

import ctypes
import mmap
import os

from outsize.errors import DoesNotFit
from outsize.sizes import format_size

HUGE_PAGE = 2 << 20

# glibc's mallopt (malloc.h). Left to itself, it raises the size from which memory is the system's own again to that of
# the largest tensor that was freed, up to 32 MiB: then activations lie in the heap among keys and values that stay, and
# the holes between them took 500 MB in a generation of four prompts of 512.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
OWN_BYTES = 1 << 20
TRIM_BYTES = 32 << 20


class Memory:
    """``nbytes`` of private anonymous memory, aligned to a huge page; resident only once touched.

    The memory lives as long as anything refers to ``view`` (a tensor made from it, for one). Raises DoesNotFit where
    the system has no address space left to give.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        # One huge page more than asked, so that an aligned start can be found; what is never touched costs nothing.
        try:
            whole = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise DoesNotFit(f"no memory for a buffer: {error.strerror}", need=format_size(nbytes)) from error
        raw = memoryview(whole)
        start = -_address(raw) % HUGE_PAGE
        # Only whole huge pages inside the buffer: a last partial one would become resident beyond what was asked, which
        # a system that always gives huge pages must be told.
        inside = nbytes - nbytes % HUGE_PAGE
        _advise(whole, "MADV_HUGEPAGE", start, inside)
        _advise(whole, "MADV_NOHUGEPAGE", start + inside, len(raw) - start - inside)
        self.view = raw[start : start + nbytes]


def give_back_large_memory() -> None:
    """Lets whatever takes 1 MiB or more be the system's again once it is freed, in the whole process.

    Nothing is done where the environment says something of it (``MALLOC_MMAP_THRESHOLD_``), and where the C library is
    not glibc.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, OWN_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _advise(whole: mmap.mmap, advice: str, start: int, length: int) -> None:
    """Advice, where the system knows it: without huge pages all is slower, and just as right."""
    if length and hasattr(mmap, advice):
        try:
            whole.madvise(getattr(mmap, advice), start, length)
        except OSError:
            return
