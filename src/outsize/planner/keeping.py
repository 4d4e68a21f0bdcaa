"""Single tensors of streamed blocks that stay in RAM: the room that no whole block can use is not left empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from outsize.planner.placement import computing, passes, spread
from outsize.planner.plan import KeptTensor
from outsize.planner.problem import Problem

LEAST_BYTES = 1024**2  # of a tensor that is kept by itself: less is not worth a read and a buffer of its own


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of streamed blocks, by the index of the module."""

    tensors: Mapping[int, tuple[KeptTensor, ...]]

    def file_bytes(self, index: int) -> int:
        """Bytes of a module that are not read again."""
        return sum(one.file_bytes for one in self.tensors.get(index, ()))

    def ram_bytes(self, index: int) -> int:
        """Bytes that stay of a module."""
        return sum(one.ram_bytes for one in self.tensors.get(index, ()))


def room_left(problem: Problem, homes: Sequence[str], slots: int) -> int:
    """Bytes of RAM that a placement leaves to more weights: free of cache and ring, and within the limit of weights."""
    held = sum(u.ram_bytes for u in problem.units if homes[u.index] == "ram")
    cache = sum(u.kv_bytes for u in problem.units if computing(homes[u.index]) == "ram")
    ring = [u.slot_bytes for u in problem.units if problem.is_streamed(homes, u.index) or passes(u, homes[u.index])]
    return min(problem.ram.room - held - cache - slots * max(ring, default=0), problem.ram.weight_limit - held)


def keep_tensors(problem: Problem, homes: Sequence[str], slots: int) -> Kept:
    """Tensors of streamed blocks for the room that is left: the largest that fit, evenly spread over the blocks.

    Only what decode reads again and what lies in the files as it is used; every kept byte is a byte less per token.
    """
    room = room_left(problem, homes, slots)
    movable = {
        u.index: list(problem.tensors[u.index])
        for u in problem.units
        if u.kind == "block" and u.every_token and not u.made_anew and problem.is_streamed(homes, u.index)
    }
    kept: dict[int, list[KeptTensor]] = {}
    while size := max(
        (one.ram_bytes for rest in movable.values() for one in rest if LEAST_BYTES <= one.ram_bytes <= room), default=0
    ):
        holders = [problem.units[i] for i, rest in movable.items() if any(one.ram_bytes == size for one in rest)]
        for index in spread(holders, min(len(holders), room // size)):
            one = next(one for one in movable[index] if one.ram_bytes == size)
            movable[index].remove(one)
            kept.setdefault(index, []).append(one)
            room -= size
    return Kept({index: tuple(several) for index, several in kept.items()})


def without(problem: Problem, kept: Kept) -> Problem:
    """The problem as decode sees it, where what is kept is not read again."""
    rest = tuple(size - kept.file_bytes(i) for i, size in enumerate(problem.rest_bytes))
    return replace(problem, rest_bytes=rest)
