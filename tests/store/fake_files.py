"""Files in memory whose reads can be held up, counted and made to fail."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable

from outsize.models.spec import StoredTensor
from outsize.planner.weight_group import WeightGroup
from outsize.store.buffer import Memory
from outsize.store.layout import Layout, lay_out

STAYS = {"keep": ("ram", "resident", True), "once": ("gpu0", "resident", False), "stream": ("disk", "streamed", False)}


class FakeFiles:
    """Every byte of unit i's file "i" is a function of i and its place.

    ``gate``: reads wait until it is set. ``jitter``: most seconds that a read takes, at random.
    """

    def __init__(self, *, jitter: float = 0.0, seed: int = 0) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.reads: list[str] = []
        self.checks: list[str] = []
        self.fail: dict[str, BaseException] = {}
        self.fail_check: dict[str, BaseException] = {}
        self.targets: set[int] = set()  # where buffers began
        self._jitter = jitter
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def read_into(self, file: str, offset: int, view: memoryview, needed: int) -> int:
        with self._lock:
            self.reads.append(file)
            delay = self._random.random() * self._jitter
        assert self.gate.wait(20)
        if self._jitter:
            time.sleep(delay)
        if file in self.fail:
            raise self.fail[file]
        view[:needed] = content(file, offset, needed)
        return needed

    def check(self, files: Iterable[str]) -> None:
        for file in files:
            self.checks.append(file)
            if file in self.fail_check:
                raise self.fail_check[file]

    def close(self) -> None:
        self.gate.set()


def content(file: str, offset: int, length: int) -> bytes:
    """What a fake file holds: a pattern of 251 bytes, which differs between files, again and again."""
    pattern = bytes((int(file) * 7 + place * place) % 251 for place in range(251))
    start = offset % 251
    return (pattern * (length // 251 + 2))[start : start + length]


def make_groups(
    stays: Iterable[str], nbytes: int = 4096, copy_bytes: int | None = None
) -> list[tuple[WeightGroup, Layout]]:
    """One group per word of STAYS, each in a file of its own; ``copy_bytes``: of the RAM that a copy of it takes."""
    groups = []
    for i, stay in enumerate(stays):
        tier, residency, in_place = STAYS[stay]
        tier = "ram" if copy_bytes is not None and stay == "once" else tier
        rest = nbytes if copy_bytes is None else copy_bytes
        group = WeightGroup(
            f"unit {i}",
            ("w",),
            nbytes,
            rest,
            nbytes,
            "native",
            tier,
            "ram",
            residency,
            in_place=in_place,  # type: ignore[arg-type]
        )
        groups.append((group, lay_out([StoredTensor("w", "uint8", (nbytes,), str(i), 0, nbytes)])))
    return groups


def holds(memory: Memory, index: int, nbytes: int = 4096) -> bool:
    """Whether the memory holds that unit's bytes."""
    return bytes(memory.view[:nbytes]) == content(str(index), 0, nbytes)
