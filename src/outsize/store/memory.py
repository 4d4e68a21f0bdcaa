"""Buffers that the drive can write into directly and the kernels read fast: page-aligned, on huge pages."""

from __future__ import annotations

import mmap

HUGE_PAGE = 2 << 20


class Memory:
    """``nbytes`` of private anonymous memory, aligned to a huge page; resident only once touched.

    The memory lives as long as anything refers to ``view`` (a tensor made from it, for one).
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        # One huge page more than asked, so that an aligned start can be found; what is never touched costs nothing.
        whole = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        raw = memoryview(whole)
        start = -_address(raw) % HUGE_PAGE
        # Only whole huge pages inside the buffer: a last partial one would become resident beyond what was asked.
        inside = nbytes - nbytes % HUGE_PAGE
        if inside and hasattr(mmap, "MADV_HUGEPAGE"):
            _advise_huge(whole, start, inside)
        self.view = raw[start : start + nbytes]


def _address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _advise_huge(whole: mmap.mmap, start: int, length: int) -> None:
    try:
        whole.madvise(mmap.MADV_HUGEPAGE, start, length)
    except OSError:  # a kernel without huge pages: slower, and just as right
        return
