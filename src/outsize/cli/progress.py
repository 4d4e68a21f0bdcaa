"""What happens meanwhile, on stderr: bars on a terminal, plain lines anywhere else. Answers never come here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outsize.sizes import format_size

Advance = Callable[[int, int], None]  # bytes done so far, of how many


def note(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


class Bytes:
    """A bar while something moves bytes; where stderr is no terminal, one line at the end.

    It begins with the first ``to`` and ends when all are there, or at ``close``.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._began = time.monotonic()
        self._done = 0
        self._over = False

    def to(self, done: int, total: int) -> None:
        """So many bytes have moved so far, of so many in all."""
        if self._over or not total:
            return
        self._done = max(self._done, done)
        if sys.stderr.isatty():
            self._show(total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Ends the bar, or says the line. A second close does nothing."""
        if self._over:
            return
        self._over = True
        if self._bar is not None:
            self._bar.close()
        elif self._done:
            note(f"{self._label}: {format_size(self._done)} in {time.monotonic() - self._began:.1f} s")

    def _show(self, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=self._label, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr
            )
        self._bar.total = total
        self._bar.update(self._done - self._bar.n)


@contextmanager
def bar(total_bytes: int, label: str) -> Iterator[Advance]:
    """``Bytes`` while a block lasts: gives a function of the bytes done so far and of how many in all."""
    moved = Bytes(label)

    def advance(done: int, total: int = total_bytes) -> None:
        moved.to(done, total)

    try:
        yield advance
    finally:
        moved.close()
