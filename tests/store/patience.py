"""How tests of threads wait: for what must happen, and never for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE = 20.0  # seconds after which a test counts as stuck


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def in_thread(work: Callable[[], object]) -> object:
    """What the work gives or raises, done in a thread, so that a deadlock fails the test instead of stopping it."""
    results: list[object] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001
            results.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "stuck"
    return results[0]
