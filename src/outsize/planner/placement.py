"""Which module rests where: one assignment for given choices. The search tries several and keeps the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Literal

Kind = Literal["block", "experts", "head", "lookup", "small"]
Start = Literal["first", "last", "largest"]
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """Bytes of one tensor: as it is read from the files, at rest in RAM, and on a GPU.

    ``key``: of its matmul rate. ``layer``: the place of the first tensor that the same inner module has.
    """

    file: int
    ram: int
    gpu: int
    key: str = ""
    matmul: bool = False
    layer: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One module as the search sees it. Units stand in the order of the spec's modules.

    ``kind``: ``small`` are norms and the like; what is neither experts, head nor look-up counts as a block.
    ``rest_bytes``: read in a sweep; ``file_bytes``: on disk, with what nobody reads again; ``resident_bytes``: on a
    GPU, ``ram_bytes``: in RAM, less where it is ``encoded`` there in 12 bits. ``every_token``: false for what decode
    does not touch, such as an encoder. ``rows``: may be looked up on disk by row. ``copied``: in memory it is not as it
    is in the files, so it passes through the ring even where RAM keeps it. ``decode_s``: seconds of one token of each
    sequence, by the tier in which it rests; ``prefill_s``: of the prompts, by the device that computes.
    ``experts``: how many it has; ``slot_bytes`` is that of the cache then, for one of them, and ``token_bytes`` the
    file bytes of those that one token of each sequence is sent to.
    """

    index: int
    kind: Kind
    resident_bytes: int
    slot_bytes: int = 0
    kv_bytes: int = 0
    ram_bytes: int = 0
    rest_bytes: int = 0
    file_bytes: int = 0
    parts: int = 1
    every_token: bool = True
    rows: bool = False
    copied: bool = False
    encoded: bool = False
    experts: int = 0
    token_bytes: float = 0.0
    tensors: tuple[TensorBytes, ...] = ()
    decode_s: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    prefill_s: Mapping[str, float] = field(default_factory=lambda: NOTHING)

    def passes_ring(self, home: str) -> bool:
        """Whether it passes through the ring, at the load or in every sweep."""
        if self.kind == "experts":
            return False  # they have a cache of their own
        if home == "disk":
            return not self.rows
        return home != "ram" or self.copied or self.encoded


@dataclass(frozen=True, slots=True)
class Tier:
    """Room of a device after everything but weights, cache and ring: bytes in all, and of weights at rest.

    ``staging``: bytes of RAM that the use of a GPU takes, once for all of them.
    """

    name: str
    room: int
    weight_limit: int
    staging: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """What one candidate tries.

    ``devices``: GPUs and ``ram`` in the order in which they are filled; a GPU that is not among them holds nothing.
    ``start``: which blocks the GPUs take first. ``slots``: of the ring. ``experts_to_gpus``: routed experts go to GPUs
    first, wherever RAM stands in the order.
    """

    head: str
    devices: tuple[str, ...]
    start: Start
    slots: int
    experts_to_gpus: bool = False

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that may hold weights."""
        return tuple(name for name in self.devices if name != "ram")


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


def spread(items: Sequence[Unit], count: int) -> set[int]:
    """Indexes of ``count`` of the units, evenly spread: the middle of each of ``count`` equal stretches."""
    return {items[(2 * i + 1) * len(items) // (2 * count)].index for i in range(count)}


def place(units: Sequence[Unit], ram: Tier, gpus: Sequence[Tier], choice: Choice) -> tuple[str, ...] | None:
    """The home of every unit, or None where the choice does not fit.

    The devices are filled in the order of the choice: GPUs with runs of blocks, so that hops are few; GPUs after RAM
    take only what RAM cannot. What no device holds is streamed from disk: the fewest blocks that must be, evenly spread
    between the others, and first of all what decode does not touch. Norms go where their neighbours compute. Routed
    experts take what is left: whole layers of them on GPUs, and all others in RAM, or its cache if these are too many.
    """
    space = Space((ram, *(gpu for gpu in gpus if gpu.name in choice.gpus)))
    space.room["ram"] -= max((gpu.staging for gpu in gpus if gpu.name in choice.gpus), default=0)
    small = sum(u.resident_bytes for u in units if follows(u))
    for name in choice.gpus:
        space.room[name] -= small  # so that the norms may follow their blocks, at the end
    homes = place_outside(units, space, choice)
    if homes is None:
        return None
    order = [u for u in order_of(units, choice) if u.kind == "block"]
    before = choice.devices.index("ram")
    fill_gpus(order, choice.devices[:before], space, homes)
    already = [u for u in units if homes.get(u.index) == "disk" and not u.rows]
    spared = choice.devices[before + 1 :]
    if spared:
        take_what_ram_cannot(order, spared, already, space, homes, choice.slots)
    rest = [u for u in units if u.kind == "block" and u.index not in homes]
    space.least_slot = least_slot(units, homes)
    streamed = split(rest, already, space, choice.slots)
    if streamed is None:
        return None
    homes.update({u.index: "disk" if u.index in streamed else "ram" for u in rest})
    for unit in units:
        if unit.kind == "lookup" and unit.rows:
            keep = not streamed and not unit.copied and space.take("ram", unit.ram_bytes)
            homes[unit.index] = "ram" if keep else "disk"
    place_experts(order_of(units, choice), choice, space, homes)
    follow(units, homes, space)
    return tuple(homes[u.index] for u in units)


def order_of(units: Sequence[Unit], choice: Choice) -> list[Unit]:
    """The units in the order in which a choice fills devices."""
    return sorted(units, key=ORDERS[choice.start])


def place_experts(order: Sequence[Unit], choice: Choice, space: Space, homes: dict[int, str]) -> None:
    """Give routed experts their homes; those on disk share the cache that the rest of RAM becomes."""
    rest = [unit for unit in order if unit.kind == "experts"]
    for name in (*choice.gpus, "ram") if choice.experts_to_gpus else choice.devices:
        if name == "ram":
            if space.take("ram", sum(unit.ram_bytes for unit in rest)):
                homes.update({unit.index: "ram" for unit in rest})
                rest = []
            continue
        for unit in rest[:]:
            if space.take(name, unit.resident_bytes):
                homes[unit.index] = name
                rest.remove(unit)
    homes.update({unit.index: "disk" for unit in rest})


def fill_gpus(order: Sequence[Unit], names: Sequence[str], space: Space, homes: dict[int, str]) -> None:
    """Fill the GPUs, one after the other, with units that have no home yet."""
    for name in names:
        for unit in order:
            if unit.index not in homes and space.take(name, unit.resident_bytes, unit.kv_bytes):
                homes[unit.index] = name


def take_what_ram_cannot(
    order: Sequence[Unit],
    names: Sequence[str],
    already: Sequence[Unit],
    space: Space,
    homes: dict[int, str],
    slots: int,
) -> None:
    """Give the GPUs units until the others fit in RAM, from the end of the order."""
    rest = [u for u in order if u.index not in homes]
    for name in names:
        for unit in reversed(order):
            if unit.index in homes:
                continue
            room = space.room["ram"] - sum(u.kv_bytes for u in (*rest, *already))
            passing = max((u.slot_bytes for u in order if u.passes_ring(homes.get(u.index, "ram"))), default=0)
            slot = max([passing, *(u.slot_bytes for u in already)])
            if fits(rest, set(), Bounds(space.weights["ram"], room, slots, slot)):
                return
            if space.take(name, unit.resident_bytes, unit.kv_bytes):
                homes[unit.index] = name
                rest.remove(unit)


def least_slot(units: Sequence[Unit], homes: Mapping[int, str]) -> int:
    """Bytes of a ring slot for what passes through the ring at the load; all without a home yet come to RAM or disk."""
    passing = (u.slot_bytes for u in units if u.kind != "lookup" and u.passes_ring(homes.get(u.index, "ram")))
    return max(passing, default=0)


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
        if unit.kind != "experts":
            before = homes[unit.index]
