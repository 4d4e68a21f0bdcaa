"""How threads wait for each other: OpenMP reads it when torch loads it, so it is decided before.

Where another process keeps one thread from its core, threads that spin while they wait for it make a token up to twenty
times slower; those that sleep, about twice. On an idle machine sleeping costs: a virtual core takes long to wake
(``bench/busy.py``, ``docs/log.md``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from pathlib import Path

POLICY = "OMP_WAIT_POLICY"
LOOKS, APART_S = 3, 0.002  # at what runs besides, so that what is over at once does not count


def choose_wait_policy(
    environ: MutableMapping[str, str],
    load: Callable[[], str] = lambda: Path("/proc/loadavg").read_text(encoding="ascii"),
) -> None:
    """Lets threads sleep where others compute now, unless the environment says how they wait."""
    if POLICY in environ or "GOMP_SPINCOUNT" in environ:
        return
    for look in range(LOOKS):
        if look:
            time.sleep(APART_S)
        try:
            running = int(load().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return  # a system that does not say
        if running < 2:  # this one runs, too
            return
    environ[POLICY] = "PASSIVE"
