"""What happens meanwhile, on stderr: bars on a terminal, plain lines anywhere else. Answers never come here."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outsize.facts.sizes import format_size

Advance = Callable[[int, int], None]  # done so far, of how many: bytes


def note(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def bar(total_bytes: int, label: str) -> Iterator[Advance]:
    """A bar while something moves bytes. Gives a function of the bytes done so far and, newly, of how many in all.

    Where stderr is no terminal: one line at the end, also where it ends by an error.
    """
    if not sys.stderr.isatty():
        yield from _line(total_bytes, label)
        return
    from tqdm import tqdm

    with tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr) as shown:

        def advance(done: int, total: int = total_bytes) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield advance


def _line(total_bytes: int, label: str) -> Iterator[Advance]:
    began = time.monotonic()
    most = 0

    def advance(done: int, total: int = total_bytes) -> None:
        nonlocal most
        most = max(most, done)

    try:
        yield advance
    finally:
        if most:
            note(f"{label}: {format_size(most)} in {time.monotonic() - began:.1f} s")
