"""An end to work that may never end, such as building what a hostile configuration describes."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_CHECKS = 1000


class _Overdue(BaseException):
    """Raised in the thread that takes too long; no ``except Exception`` on the way stops it."""


@contextmanager
def time_limit(seconds: float, late: Callable[[], Exception]) -> Iterator[None]:
    """Raises what ``late`` makes where the block runs longer, in any thread, as soon as it comes to Python code.

    A single call into a library in C is not interrupted, but what follows it is.
    """
    thread, lock, over = threading.get_ident(), threading.Lock(), False
    raised = False

    def interrupt() -> None:
        nonlocal raised
        with lock:
            if not over:
                set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
                raised = set_exception(ctypes.c_ulong(thread), ctypes.py_object(_Overdue)) > 0

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            yield
        finally:
            with lock:
                over = True
            timer.cancel()
            for _ in range(MOST_CHECKS):
                if not raised or isinstance(sys.exc_info()[1], _Overdue):
                    break
                # It is on its way, and must not arrive anywhere else. Whether it still is here is luck.
                time.sleep(0)  # pragma: no cover
    except _Overdue:
        raise late() from None
