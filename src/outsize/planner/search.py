"""The search: tries placements, predicts the seconds of each, and keeps the fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from outsize.planner.placement import Choice, Start, place
from outsize.planner.prediction import judge
from outsize.planner.problem import Problem

LEAST_SLOTS = 2  # one is read while the other computes
MOST_SLOTS = 6
STEP_BYTES = 64 * 1024


def fastest(problem: Problem) -> tuple[tuple[str, ...], int] | None:
    """Homes per module and ring slots of the fastest placement found, or None where none fits.

    Tried: the head on the first or last GPU, in RAM, on disk; GPUs filled fastest first, largest first, as numbered, or
    not at all, from the first block or from the last; two ring slots, and up to six where they pay
    or cost no block its place.
    """
    best: tuple[float, tuple[str, ...], Choice] | None = None
    seen: set[tuple[str, ...]] = set()
    for homes, choice in _placements(problem):
        if homes not in seen:
            seen.add(homes)
            score = judge(problem, homes, choice.slots)
            if best is None or score < best[0]:
                best = (score, homes, choice)
    if best is None:
        return None
    score, homes, choice = best
    slots = choice.slots
    for more in range(LEAST_SLOTS + 1, MOST_SLOTS + 1) if "disk" in homes else ():
        wider = place(problem.units, problem.ram, problem.gpus, replace(choice, slots=more))
        if wider is None:
            break
        seconds = judge(problem, wider, more)
        # The same homes: room that nothing else can use, for reading evens out with it. Others have to be worth it.
        if seconds <= score * (1.0 if wider == homes else 0.99):
            score, homes, slots = seconds, wider, more
    return homes, slots


def _placements(problem: Problem) -> Iterator[tuple[tuple[str, ...], Choice]]:
    orders = _gpu_orders(problem)
    ends = [name for order in orders if order for name in (order[0], order[-1])]
    heads = [*dict.fromkeys(ends), "ram", "disk"]
    if not any(unit.kind == "head" for unit in problem.units):
        heads = ["ram"]
    starts: list[Start] = ["first", "last"]
    if len({unit.resident_bytes for unit in problem.units if unit.kind == "block"}) > 1:
        starts.append("largest")
    for head, order, start in product(heads, orders, starts):
        if not order and start != "first":
            continue
        choice = Choice(head, order, start, LEAST_SLOTS)
        homes = place(problem.units, problem.ram, problem.gpus, choice)
        if homes is not None:
            yield homes, choice


def _gpu_orders(problem: Problem) -> list[tuple[str, ...]]:
    names = [gpu.name for gpu in problem.gpus]
    by_speed = sorted(problem.gpus, key=lambda g: sum(problem.decode_s[g.name]))
    by_room = sorted(problem.gpus, key=lambda g: -min(g.room, g.weight_limit))
    orders = [tuple(g.name for g in by_speed), tuple(g.name for g in by_room), tuple(names), ()]
    return list(dict.fromkeys(orders))


def fits(problem: Problem) -> bool:
    """Whether any placement fits: the first one found answers."""
    return next(_placements(problem), None) is not None


def smallest(problem: Problem) -> tuple[tuple[str, ...], int]:
    """Homes and ring slots of the fastest placement in the least RAM that would do, where the machine's does not.

    Halves the room between what there is and what would hold everything, down to 64 KiB.
    """
    low = problem.ram.room
    high = max(low, 0) + sum(u.resident_bytes + 2 * u.slot_bytes + u.kv_bytes for u in problem.units)
    while high - low > STEP_BYTES:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(_with_room(problem, middle)) else (middle, high)
    found = fastest(_with_room(problem, high))
    assert found is not None, "with room for everything, something fits"
    return found


def _with_room(problem: Problem, room: int) -> Problem:
    return replace(problem, ram=replace(problem.ram, room=room))
