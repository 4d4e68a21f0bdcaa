"""Which module rests where: one assignment for given choices. The planner tries several and keeps the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal["block", "head", "lookup", "small"]
Start = Literal["first", "last", "largest"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One module as placement sees it. Units stand in the order of the spec's modules.

    ``kind``: ``small`` are norms and the like; anything else that is neither head nor look-up counts as a block.
    ``every_token``: false for what decode does not touch, such as an encoder. ``rows``: may be looked up on disk
    by row. ``made_anew``: in memory it is not as it is in the files, so it passes the ring even where RAM keeps it.
    ``compact_bytes``: what it takes in RAM in the lossless 12-bit form, if it shall be held in that.
    """

    index: int
    kind: Kind
    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    every_token: bool = True
    rows: bool = False
    made_anew: bool = False
    compact_bytes: int | None = None

    @property
    def ram_bytes(self) -> int:
        """What it takes where it rests in RAM."""
        return self.resident_bytes if self.compact_bytes is None else self.compact_bytes


@dataclass(frozen=True, slots=True)
class Tier:
    """Room of a device after everything but weights, cache and ring: bytes in all, and of weights at rest."""

    name: str
    room: int
    weight_limit: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What one candidate tries: the head's home, the order in which GPUs are filled and with what first, ring slots."""

    head: str
    gpus: tuple[str, ...]
    start: Start
    slots: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What RAM leaves to the blocks: bytes of weights, bytes with the ring, its slots, and the least size of a slot."""

    weights: int
    room: int
    slots: int
    largest: int


MOST_CEILINGS = 8
# GPUs take blocks in this order; what decode does not touch comes last.
ORDERS: dict[Start, Callable[[Unit], tuple[bool, int, int]]] = {
    "first": lambda unit: (not unit.every_token, 0, unit.index),
    "last": lambda unit: (not unit.every_token, 0, -unit.index),
    "largest": lambda unit: (not unit.every_token, -unit.resident_bytes, unit.index),
}


class Space:
    """What is left of each tier while one assignment is made."""

    def __init__(self, tiers: Iterable[Tier]) -> None:
        tiers = tuple(tiers)
        self.room = {tier.name: tier.room for tier in tiers}
        self.weights = {tier.name: tier.weight_limit for tier in tiers}
        self.least_slot = 0  # of the ring: what is not kept as it is read passes through it, once at least

    def take(self, tier: str, weights: int, kv: int = 0) -> bool:
        """Take the bytes in that tier and say so, or take nothing."""
        if weights > self.weights[tier] or weights + kv > self.room[tier]:
            return False
        self.weights[tier] -= weights
        self.room[tier] -= weights + kv
        return True


def computing(home: str) -> str:
    """The device that computes what rests there: a GPU its own, the CPU what is in RAM or streamed from disk."""
    return home if home.startswith("gpu") else "ram"


def passes(unit: Unit, home: str) -> bool:
    """Whether the unit passes the ring, once at least: on its way to a GPU, or to be made anew in RAM."""
    return home.startswith("gpu") or (home == "ram" and (unit.made_anew or unit.compact_bytes is not None))


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
    small = sum(u.resident_bytes for u in units if follows(u))
    for gpu in gpus:
        space.room[gpu.name] -= small  # so that the norms may follow their blocks, at the end
    homes = place_outside(units, space, choice)
    if homes is None:
        return None
    blocks = [u for u in units if u.kind == "block"]
    order = sorted(blocks, key=ORDERS[choice.start])
    for name in choice.gpus:
        for unit in order:
            if unit.index not in homes and space.take(name, unit.resident_bytes, unit.kv_bytes):
                homes[unit.index] = name
    rest = [u for u in blocks if u.index not in homes]
    passing = [u.slot_bytes for u in units if passes(u, homes.get(u.index, "ram")) and u.kind != "lookup"]
    space.least_slot = max(passing, default=0)
    streamed = split(rest, [u for u in units if homes.get(u.index) == "disk"], space, choice.slots)
    if streamed is None:
        return None
    homes.update({u.index: "disk" if u.index in streamed else "ram" for u in rest})
    for unit in units:
        if unit.kind == "lookup" and unit.rows:
            keep = not streamed and not unit.made_anew and space.take("ram", unit.ram_bytes)
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

    ``already`` are streamed in any case. Takes what it needs from ``space``. Their cache lies in RAM. Where sizes
    differ, streaming only the smaller ones is tried too, for their ring is smaller; the fewest bytes win.
    """
    room = space.room["ram"] - sum(u.kv_bytes for u in (*rest, *already))
    largest = max((u.slot_bytes for u in already), default=0)
    bounds = Bounds(space.weights["ram"], room, slots, max(largest, space.least_slot))
    always = frozenset(u.index for u in already)
    if fits(rest, set(), bounds):
        total = sum(u.ram_bytes for u in rest)
        space.take("ram", total)
        space.room["ram"] = room - total - slots * bounds.largest
        return always
    tried = (
        thin(rest, [u for u in rest if u.slot_bytes <= ceiling], bounds)
        for ceiling in sorted({u.slot_bytes for u in rest})[-MOST_CEILINGS:]
    )
    found = [out for out in tried if out is not None]
    if not found:
        return None
    space.room["ram"] = 0  # nothing else is kept beside a ring
    return always | min(found, key=lambda out: sum(u.ram_bytes for u in rest if u.index in out and u.every_token))


def thin(rest: Sequence[Unit], movable: Sequence[Unit], bounds: Bounds) -> set[int] | None:
    """Indexes of the fewest ``movable`` units, evenly spread, without which the rest fits; idle ones before others."""
    if not fits(rest, {u.index for u in movable}, bounds):
        return None  # and fewer take more room, unless smaller ones alone do, which is tried too
    idle = [u for u in movable if not u.every_token]
    busy = [u for u in movable if u.every_token]
    total = sum(u.ram_bytes for u in rest)
    unit_bytes = max(1, *(u.ram_bytes for u in movable))
    least = max(1, -(-(total - min(bounds.weights, bounds.room)) // unit_bytes))  # fewer cannot be enough
    for count in range(least, len(movable) + 1):
        out = spread(idle, min(count, len(idle))) if idle else set()
        if count > len(idle):
            out |= spread(busy, count - len(idle))
        if fits(rest, out, bounds):
            break
    return refill(rest, movable, out, bounds)


def fits(rest: Sequence[Unit], out: set[int], bounds: Bounds) -> bool:
    """Whether all but ``out`` rests within the bounds, beside a ring that takes the largest streamed unit."""
    held = sum(u.ram_bytes for u in rest if u.index not in out)
    slot = max((u.slot_bytes for u in rest if u.index in out), default=0)
    return held <= bounds.weights and held + bounds.slots * max(slot, bounds.largest) <= bounds.room


def refill(rest: Sequence[Unit], movable: Sequence[Unit], out: set[int], bounds: Bounds) -> set[int]:
    """Where units differ in size: keep what still fits, and exchange streamed ones for smaller ones while that fits."""
    if len({(u.ram_bytes, u.slot_bytes) for u in rest}) == 1:
        return out
    out = set(out)
    for unit in sorted(movable, key=lambda u: (not u.every_token, -u.ram_bytes)):
        if unit.index in out and fits(rest, out - {unit.index}, bounds):
            out.remove(unit.index)
    for unit, other in product(movable, movable):
        if unit.index in out and other.index not in out and other.ram_bytes < unit.ram_bytes:
            swapped = out - {unit.index} | {other.index}
            if unit.every_token >= other.every_token and fits(rest, swapped, bounds):
                out = swapped
    return out


def follows(unit: Unit) -> bool:
    """Whether the unit goes where its neighbour computes: norms do, small embeddings stay in RAM."""
    return unit.kind == "small" and not unit.rows and not unit.kv_bytes


def follow(units: Sequence[Unit], homes: dict[int, str], space: Space) -> None:
    """Move small modules to the GPU on which the module before them computes: a hop less. Their room was kept."""
    before = ""
    for unit in units:
        if follows(unit) and before.startswith("gpu"):
            space.room[before] += unit.resident_bytes
            if space.take(before, unit.resident_bytes):
                homes[unit.index] = before
        before = homes[unit.index]
