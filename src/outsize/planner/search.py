"""The search: tries placements, estimates the seconds of each, and keeps the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from outsize.machine import rates
from outsize.planner import cost
from outsize.planner.fill import Filling, expert_slots, fill, ring_slot_bytes, room_left
from outsize.planner.groups import groups_of
from outsize.planner.placement import Choice, Start, Tier, Unit, computing, place
from outsize.planner.problem import Problem, by_device
from outsize.planner.sweep_cost import SweepCost

LEAST_SLOTS = 2  # one is read while the other computes
MOST_SLOTS = 6
STEP_BYTES = 64 * 1024
MOST_COUNTS = 12  # of layers of experts on a GPU that are tried
MOST_POSITIONS = 4  # of RAM among the GPUs, and of the last GPU in use, where many differ
# A placement is compared by a token's seconds, and by the first token's shared among this many.
TOKENS_PER_FIRST = 1000
# Of the placements with the least estimates, so many within that factor of the best are predicted as a plan is.
MOST_PREDICTED = 5
NEAR = 1.03


@dataclass(frozen=True, slots=True)
class Found:
    """A placement: the home of every module, tensors that rest elsewhere, ring slots, and the estimate it won by."""

    homes: tuple[str, ...]
    filling: Filling
    slots: int
    estimate_s: float


def estimate_s(problem: Problem, homes: Sequence[str], filling: Filling, slots: int) -> float:
    """Seconds by which placements are compared: ``max(reading, computing) + hops + reading / 20 + first / 1000``.

    A steady sweep takes at least its reading or its computing, whichever is longer, and a ring of buffers comes near
    to that. A twentieth of the reading counts even where computing hides it: what can rest shall not keep the drive
    busy. ``first``: ``max(load, prefill)``. Experts that are not in memory are read when a token is sent to them.
    """
    devices = by_device(problem)
    disk, ram = devices["disk"], devices["ram"]
    reads = computes = load = prefill = 0.0
    path: list[str] = []
    for unit, home in zip(problem.units, homes, strict=True):
        device = computing(home)
        rows = unit.rows and home == "disk"
        read = 0 if rows or home != "disk" or unit.experts else unit.rest_bytes
        load += 0.0 if rows else cost.load_s(unit.rest_bytes, disk, devices[device])
        prefill += unit.prefill_s[device]
        if not unit.every_token:
            continue
        seconds = unit.decode_s[home] + (rates.ROW_READ_S * problem.request.batch if rows else 0.0)
        path.append(device)
        for index, other in filling.get(unit.index, {}).items():
            tensor = unit.tensors[index]
            read -= tensor.file if home == "disk" else 0
            if other != "ram":
                seconds -= tensor.ram / cost.decode_rate(ram, tensor.key)
                seconds += tensor.gpu / cost.decode_rate(devices[other], tensor.key)
                path += [other, device] if tensor.matmul else []
        reads += cost.read_s(read, disk)
        computes += seconds
    cached = [u for u, home in zip(problem.units, homes, strict=True) if u.experts and home == "disk"]
    if cached:
        held = expert_slots(problem, homes, filling, slots) - sum(
            u.experts for u, home in zip(problem.units, homes, strict=True) if home == "ram"
        )
        missed = 1 - held / sum(unit.experts for unit in cached)
        for unit in cached:  # all but the last to come compute while others are read
            used = max(unit.experts * unit.token_bytes / unit.rest_bytes, 1.0)
            meanwhile = unit.decode_s["disk"] * (1 - 1 / used)
            computes += max(cost.read_s(missed * unit.token_bytes, disk) - meanwhile, 0.0)
    return max(reads, computes) + cost.hops_s(path) + reads / 20 + max(load, prefill) / TOKENS_PER_FIRST


def fastest(problem: Problem) -> Found | None:
    """The fastest placement found, or None where none fits.

    Tried: the head on a GPU, in RAM, on disk; devices filled by speed, by room or as numbered, RAM before, between or
    after the GPUs, all of them or fewer, from the first block or from the last or largest first; two ring slots, and up
    to six where they pay or cost no block its place.
    """
    tried: list[tuple[Found, Choice]] = []
    seen: set[tuple[str, ...]] = set()
    for homes, choice in _placements(problem):
        if homes not in seen:
            seen.add(homes)
            filling = fill(problem, homes, choice.slots)
            estimate = estimate_s(problem, homes, filling, choice.slots)
            tried.append((Found(homes, filling, choice.slots, estimate), choice))
    if not tried:
        return None
    tried += _fewer_experts_on_gpus(problem, tried)
    tried.sort(key=lambda one: one[0].estimate_s)
    near = [one for one in tried[:MOST_PREDICTED] if one[0].estimate_s <= tried[0][0].estimate_s * NEAR]
    best = min(near, key=lambda one: _score_s(problem, one[0])) if len(near) > 1 else near[0]
    return _widen(problem, *best) if ring_slot_bytes(problem, best[0].homes, best[0].filling) else best[0]


def _fewer_experts_on_gpus(problem: Problem, tried: Sequence[tuple[Found, Choice]]) -> list[tuple[Found, Choice]]:
    """The best of those tried, with fewer layers of experts on each GPU: a slow one may have room for too many."""
    more: list[tuple[Found, Choice]] = []
    for found, choice in sorted(tried, key=lambda one: one[0].estimate_s)[:MOST_PREDICTED]:
        for gpu in problem.gpus:
            there = [u.index for u in problem.units if u.experts and found.homes[u.index] == gpu.name]
            for count in range(0, len(there), max(len(there) // MOST_COUNTS, 1)):
                kept = set(there[:count])
                homes = _without_gpu(problem, found.homes, {index for index in there if index not in kept}, choice)
                filling = fill(problem, homes, choice.slots)
                estimate = estimate_s(problem, homes, filling, choice.slots)
                if estimate < found.estimate_s:
                    more.append((Found(homes, filling, choice.slots, estimate), choice))
    return more


def _without_gpu(problem: Problem, homes: Sequence[str], leaving: set[int], choice: Choice) -> tuple[str, ...]:
    """The homes with the experts of some layers off their GPU: all in RAM that no GPU has, or all in its cache."""
    moved = ["disk" if index in leaving else home for index, home in enumerate(homes)]
    others = [unit for unit in problem.units if unit.experts and not moved[unit.index].startswith("gpu")]
    for unit in others:
        moved[unit.index] = "disk"
    if sum(unit.ram_bytes for unit in others) <= room_left(problem, moved, choice.slots)["ram"]:
        for unit in others:
            moved[unit.index] = "ram"
    return tuple(moved)


def _widen(problem: Problem, found: Found, choice: Choice) -> Found:
    """The same with more ring slots, where these make a token faster as predicted."""
    best_s = _token_s(problem, found)
    for slots in range(LEAST_SLOTS + 1, MOST_SLOTS + 1):
        homes = place(problem.units, problem.ram, problem.gpus, replace(choice, slots=slots))
        if homes is None:
            break
        filling = fill(problem, homes, slots)
        wider = Found(homes, filling, slots, estimate_s(problem, homes, filling, slots))
        seconds = _token_s(problem, wider)
        # The same placement: room that nothing else can use, for reading evens out with it. Others have to be worth it.
        if seconds <= best_s * (1.0 if (homes, filling) == (found.homes, found.filling) else 0.99):
            found, best_s = wider, seconds
        else:
            break
    return found


def _score_s(problem: Problem, found: Found) -> float:
    """What ``estimate_s`` estimates, with a token's seconds as they are predicted."""
    disk = by_device(problem)["disk"]
    model = _sweep_cost(problem, found)
    reading = cost.read_s(model.decode_bytes, disk)
    return model.token_s(problem.request) + reading / 20 + model.first_token_s(problem.request) / TOKENS_PER_FIRST


def _token_s(problem: Problem, found: Found) -> float:
    return _sweep_cost(problem, found).token_s(problem.request)


def _sweep_cost(problem: Problem, found: Found) -> SweepCost:
    groups = groups_of(problem, found.homes, found.filling)
    held = expert_slots(problem, found.homes, found.filling, found.slots)
    return SweepCost(problem.spec, problem.machine, problem.weights, groups, found.slots, held)


def _placements(problem: Problem) -> Iterator[tuple[tuple[str, ...], Choice]]:
    """The placements to compare. Where none fits, those that keep no small embedding in RAM."""
    found = False
    for one in _placed(problem, problem.units):
        found = True
        yield one
    rows = [unit for unit in problem.units if unit.kind == "small" and unit.rows]
    if rows and not found:
        yield from _placed(problem, [replace(u, kind="lookup") if u in rows else u for u in problem.units])


def _placed(problem: Problem, units: Sequence[Unit]) -> Iterator[tuple[tuple[str, ...], Choice]]:
    orders = _device_orders(problem)
    has_head = any(unit.kind == "head" for unit in problem.units)
    starts: list[Start] = ["first", "last"]
    if len({unit.resident_bytes for unit in problem.units if unit.kind == "block"}) > 1:
        starts.append("largest")
    for order, start in product(orders, starts):
        gpus = [name for name in order if name != "ram"]
        if not gpus and start != "first":
            continue
        heads = dict.fromkeys([*gpus[:1], *gpus[-1:], "ram", "disk"]) if has_head else ("ram",)
        routed = any(unit.experts for unit in units) and order != (*gpus, "ram")
        for head, experts_to_gpus in product(heads, (False, True) if routed else (False,)):
            choice = Choice(head, order, start, LEAST_SLOTS, experts_to_gpus)
            homes = place(units, problem.ram, problem.gpus, choice)
            if homes is not None:
                yield homes, choice


def _device_orders(problem: Problem) -> list[tuple[str, ...]]:
    """The orders in which devices are filled.

    GPUs by speed, by room and as numbered; the first of them, one more in each; RAM at the end, or before the slower
    ones; of a mixture of experts before any, for a GPU may have room for a layer's experts or for the rest of it. Where
    many GPUs are alike, only some of these.
    """
    routed = any(unit.experts for unit in problem.units)

    def seconds(name: str) -> float:
        return sum(unit.decode_s[name] for unit in problem.units)

    def room(gpu: Tier) -> int:
        return min(gpu.room, gpu.weight_limit)

    usable = [gpu for gpu in problem.gpus if room(gpu) > 0]
    by_speed = [gpu.name for gpu in sorted(usable, key=lambda g: seconds(g.name))]
    by_room = [gpu.name for gpu in sorted(usable, key=lambda g: -room(g))]
    numbered = [gpu.name for gpu in usable]
    orders = []
    for names in (by_speed, by_room, numbered):
        for count in _some(len(names)):
            used = names[:count]
            positions = [i for i in _some(count) if i == count or routed or seconds("ram") < seconds(used[i])]
            orders += [(*used[:i], "ram", *used[i:]) for i in positions]
    return list(dict.fromkeys(orders))


def _some(most: int) -> list[int]:
    """The numbers from ``most`` down to 0, or a few of them where they are many."""
    if most < MOST_POSITIONS:
        return list(range(most, -1, -1))
    return sorted({most * i // MOST_POSITIONS for i in range(MOST_POSITIONS + 1)}, reverse=True)


def fits(problem: Problem) -> bool:
    """Whether any placement fits: the first one found answers."""
    return next(_placements(problem), None) is not None


def smallest(problem: Problem) -> Found:
    """The fastest placement in the least RAM that would do, where the machine's does not.

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
