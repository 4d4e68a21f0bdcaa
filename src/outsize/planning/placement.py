"""Which module rests where: one assignment for given choices. The planner tries several and keeps the fastest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["block", "head", "lookup", "small"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One module as placement sees it. Units stand in the order of the spec's modules.

    ``kind``: ``small`` are norms and the like; anything else that is neither head nor look-up counts as a block.
    ``every_token``: false for what decode does not touch, such as an encoder. ``rows``: may be looked up on disk
    by row.
    """

    index: int
    kind: Kind
    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    every_token: bool = True
    rows: bool = False


@dataclass(frozen=True, slots=True)
class Tier:
    """Room of a device after everything but weights, cache and ring: bytes in all, and of weights at rest."""

    name: str
    room: int
    weight_limit: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What one candidate tries: where the head rests, in which order GPUs are filled and from which end, ring slots."""

    head: str
    gpus: tuple[str, ...]
    from_end: bool
    slots: int


class Space:
    """What is left of each tier while one assignment is made."""

    def __init__(self, tiers: Iterable[Tier]) -> None:
        tiers = tuple(tiers)
        self.room = {tier.name: tier.room for tier in tiers}
        self.weights = {tier.name: tier.weight_limit for tier in tiers}

    def take(self, tier: str, weights: int, kv: int = 0) -> bool:
        """Take the bytes in that tier and say so, or take nothing."""
        if weights > self.weights[tier] or weights + kv > self.room[tier]:
            return False
        self.weights[tier] -= weights
        self.room[tier] -= weights + kv
        return True


def spread(items: Sequence[Unit], count: int) -> set[int]:
    """Indexes of ``count`` of the units, evenly spread: the middle of each of ``count`` equal stretches."""
    return {items[(2 * i + 1) * len(items) // (2 * count)].index for i in range(count)}


def place(units: Sequence[Unit], ram: Tier, gpus: Sequence[Tier], choice: Choice) -> tuple[str, ...] | None:
    """The home of every unit, or None where the choice does not fit.

    GPUs hold runs of blocks, so that hops are few; RAM holds what is left, and if it cannot, the fewest blocks that
    must are streamed from disk, evenly spread between the others. What decode does not touch is streamed first. Norms
    go where their neighbours compute.
    """
    space = Space((ram, *gpus))
    small = sum(u.resident_bytes for u in units if u.kind == "small")
    for gpu in gpus:
        space.room[gpu.name] -= small  # so that the norms may follow their blocks, at the end
    homes = place_outside(units, space, choice)
    if homes is None:
        return None
    blocks = [u for u in units if u.kind == "block"]
    order = sorted(reversed(blocks) if choice.from_end else blocks, key=lambda u: not u.every_token)
    for name in choice.gpus:
        for unit in order:
            if unit.index not in homes and space.take(name, unit.resident_bytes, unit.kv_bytes):
                homes[unit.index] = name
    rest = [u for u in blocks if u.index not in homes]
    streamed = split(rest, [u for u in units if homes.get(u.index) == "disk"], space, choice.slots)
    if streamed is None:
        return None
    homes.update({u.index: "disk" if u.index in streamed else "ram" for u in rest})
    for unit in units:
        if unit.kind == "lookup" and unit.rows:
            keep = not streamed and space.take("ram", unit.resident_bytes)
            homes[unit.index] = "ram" if keep else "disk"
    follow(units, homes, space)
    return tuple(homes[u.index] for u in units)


def place_outside(units: Sequence[Unit], space: Space, choice: Choice) -> dict[int, str] | None:
    """Homes of what stands outside the blocks, rows aside; None where the head does not fit where it shall rest."""
    homes = {}
    for unit in units:
        if unit.kind == "small":
            homes[unit.index] = "ram" if space.take("ram", unit.resident_bytes, unit.kv_bytes) else "disk"
    for unit in units:
        if unit.kind == "head":
            homes[unit.index] = choice.head
            if choice.head != "disk" and not space.take(choice.head, unit.resident_bytes, unit.kv_bytes):
                return None
        elif unit.kind == "lookup" and not unit.rows:  # shared with other embeddings: kept whole
            held = (name for name in ("ram", *choice.gpus) if space.take(name, unit.resident_bytes))
            homes[unit.index] = next(held, "disk")
    return homes


def split(rest: Sequence[Unit], already: Sequence[Unit], space: Space, slots: int) -> frozenset[int] | None:
    """Indexes of the units to stream so that the others fit in RAM beside the ring; None where even all is too few.

    ``already`` are streamed in any case. Takes what it needs from ``space``. The cache of all of them lies in RAM.
    """
    room = space.room["ram"] - sum(u.kv_bytes for u in (*rest, *already))
    limit = space.weights["ram"]
    total = sum(u.resident_bytes for u in rest)
    largest = max((u.slot_bytes for u in already), default=0)
    if total <= limit and total + slots * largest <= room:
        space.take("ram", total)
        space.room["ram"] = room - total - slots * largest
        return frozenset(u.index for u in already)
    idle = [u for u in rest if not u.every_token]
    busy = [u for u in rest if u.every_token]
    unit_bytes = max((u.resident_bytes for u in rest), default=1) or 1
    least = max(1, -(-(total - min(limit, room)) // unit_bytes))  # fewer cannot be enough
    for count in range(least, len(rest) + 1):
        out = spread(idle, min(count, len(idle))) if idle else set()
        if count > len(idle):
            out |= spread(busy, count - len(idle))
        if fits(rest, out, (limit, room), slots, largest):
            out = refill(rest, out, (limit, room), slots, largest)
            space.room["ram"] = 0  # nothing else is kept beside a ring
            return frozenset(out | {u.index for u in already})
    return None


def fits(rest: Sequence[Unit], out: set[int], bounds: tuple[int, int], slots: int, largest: int) -> bool:
    """Whether all but ``out`` rests within the bounds (weights, bytes in all) beside ``slots`` of the largest one."""
    held = sum(u.resident_bytes for u in rest if u.index not in out)
    slot = max((u.slot_bytes for u in rest if u.index in out), default=0)
    return held <= bounds[0] and held + slots * max(slot, largest) <= bounds[1]


def refill(rest: Sequence[Unit], out: set[int], bounds: tuple[int, int], slots: int, largest: int) -> set[int]:
    """Where units differ in size: keep what still fits, and exchange streamed ones for smaller ones while that fits."""
    if len({(u.resident_bytes, u.slot_bytes) for u in rest}) == 1:
        return out
    out = set(out)
    for unit in sorted(rest, key=lambda u: (not u.every_token, -u.resident_bytes)):
        if unit.index in out and fits(rest, out - {unit.index}, bounds, slots, largest):
            out.remove(unit.index)
    for unit in rest:
        for other in rest:
            if unit.index in out and other.index not in out and other.resident_bytes < unit.resident_bytes:
                swapped = out - {unit.index} | {other.index}
                if unit.every_token >= other.every_token and fits(rest, swapped, bounds, slots, largest):
                    out = swapped
    return out


def follow(units: Sequence[Unit], homes: dict[int, str], space: Space) -> None:
    """Move small modules to the GPU on which the module before them computes: a hop less. Their room was kept."""
    before = ""
    for unit in units:
        if unit.kind == "small" and before.startswith("gpu") and not unit.kv_bytes:
            space.room[before] += unit.resident_bytes
            if space.take(before, unit.resident_bytes):
                homes[unit.index] = before
        before = homes[unit.index]
