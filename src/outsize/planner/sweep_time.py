"""Reading and computing side by side: how long a sweep takes when a ring of buffers hides one with the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One module's turn in a sweep: seconds of reading and of computing, and whether it passes through the ring."""

    read_s: float
    compute_s: float
    ring: bool


def sweeps_s(steps: Sequence[Step], slots: int, sweeps: int = 1) -> list[float]:
    """Seconds at which each of ``sweeps`` passes over the steps ends, from a standing start.

    One reader works through the steps in order, one after the other. A step computes when its predecessor has and its
    own bytes have arrived: ``end[i] = max(end[i-1], read[i]) + compute[i]``. A ring step is read into the slot that its
    ``slots``-th predecessor in the ring has left: ``read[k] = max(read[k-1], end[k-slots]) + read_s[k]``.
    """
    reader = clock = 0.0
    released: list[float] = []
    ends = []
    for _ in range(sweeps):
        for step in steps:
            if step.read_s:
                if step.ring and len(released) >= slots and released[-slots] > reader:
                    reader = released[-slots]
                reader += step.read_s
                if reader > clock:
                    clock = reader
            clock += step.compute_s
            if step.ring:
                released.append(clock)
        ends.append(clock)
    return ends


def steady_sweep_s(steps: Sequence[Step], slots: int) -> float:
    """Seconds of a sweep once the ring is full: the third of three, the first two fill the pipe.

    Never less than the reading or the computing alone: it approaches ``max(sum of reads, sum of computes)``.
    """
    if not any(step.ring for step in steps):
        return sum(step.compute_s for step in steps)
    ends = sweeps_s(steps, slots, sweeps=3)
    return ends[2] - ends[1]


def first_sweep_s(steps: Sequence[Step], slots: int) -> float:
    """Seconds of the first sweep, which is the load: every byte is read once, and computing starts with block 0."""
    return sweeps_s(steps, slots)[0]
