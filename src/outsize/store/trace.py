"""What each thread does and when: reading, waiting, binding, computing. Kept only where somebody asks for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

MOST_SPANS = 200_000  # the latest are kept

Kind = Literal["read", "wait", "bind", "compute"]


@dataclass(frozen=True, slots=True)
class Span:
    """From ``began`` to ``ended``, in seconds of ``time.monotonic``. ``nbytes``: what was read or bound, else 0."""

    kind: Kind
    name: str  # of the module whose weights they are
    thread: str
    began: float
    ended: float
    nbytes: int = 0


@dataclass(slots=True)
class Trace:
    """Spans in the order in which they ended, and when each sweep began. Any thread may add some."""

    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=MOST_SPANS))
    sweeps: list[float] = field(default_factory=list)

    def add(self, kind: Kind, name: str, began: float, nbytes: int = 0) -> None:
        """A span that ends now."""
        self.spans.append(Span(kind, name, threading.current_thread().name, began, time.monotonic(), nbytes))

    @contextmanager
    def span(self, kind: Kind, name: str, nbytes: int = 0) -> Iterator[None]:
        """A span around a block of code."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(kind, name, began, nbytes)
