"""Single tensors in the room that no whole block can use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from outsize.machine import rates
from outsize.planner import cost
from outsize.planner.placement import Unit, computing, spread
from outsize.planner.problem import Problem, by_device

LEAST_BYTES = 1024**2  # of a tensor that rests by itself: less is not worth a read and a buffer of its own
Filling = Mapping[int, dict[int, str]]  # by module: the devices of single tensors, by their places in the module


def ring_slot_bytes(problem: Problem, homes: Sequence[str], filling: Filling) -> int:
    """Bytes of the largest block that passes through the ring, at the load or in every sweep; 0 where none does."""
    passing = (
        unit.slot_bytes
        for unit, home in zip(problem.units, homes, strict=True)
        if unit.passes_ring(home) or any(device != "ram" for device in filling.get(unit.index, {}).values())
    )
    return max(passing, default=0)


def staging_bytes(problem: Problem, used: Iterable[str]) -> int:
    """Bytes of RAM that the use of these devices takes, for all of them together."""
    return max((gpu.staging for gpu in problem.gpus if gpu.name in used), default=0)


def room_left(problem: Problem, homes: Sequence[str], slots: int) -> dict[str, int]:
    """Bytes that a placement leaves to more weights, by device: within its room and its limit of weights."""
    room = {tier.name: tier.room for tier in (*problem.gpus, problem.ram)}
    held = dict.fromkeys(room, 0)
    for unit, home in zip(problem.units, homes, strict=True):
        room[computing(home)] -= unit.kv_bytes
        if home != "disk":
            held[home] += unit.ram_bytes if home == "ram" else unit.resident_bytes
    room["ram"] -= slots * ring_slot_bytes(problem, homes, {}) + staging_bytes(problem, homes)
    return {t.name: min(room[t.name], t.weight_limit) - held[t.name] for t in (*problem.gpus, problem.ram)}


def expert_slots(problem: Problem, homes: Sequence[str], filling: Filling, slots: int) -> int:
    """Slots of the cache of experts: one for each that rests in RAM, and what RAM has left for those on disk."""
    at = {"ram": 0, "disk": 0}
    for unit in problem.units:
        at[homes[unit.index]] = at.get(homes[unit.index], 0) + unit.experts
    if not at["disk"]:
        return max(at["ram"], problem.least_expert_slots)
    left = room_left(problem, homes, slots)["ram"]
    moved = [(problem.units[i], homes[i], places) for i, places in filling.items()]
    for unit, home, places in moved:
        left -= sum(unit.tensors[place].ram for place, device in places.items() if device == "ram")
        left += sum(unit.tensors[place].ram for place, device in places.items() if device != "ram" and home == "ram")
    left -= slots * (ring_slot_bytes(problem, homes, filling) - ring_slot_bytes(problem, homes, {}))
    used = {*homes, *(device for _, _, places in moved for device in places.values())}
    left -= staging_bytes(problem, used) - staging_bytes(problem, homes)
    return at["ram"] + min(problem.least_expert_slots + max(left, 0) // problem.expert_slot_bytes, at["disk"])


def fill(problem: Problem, homes: Sequence[str], slots: int) -> Filling:
    """Tensors of blocks for the room that is left, where a token becomes faster: GPUs first, then RAM.

    RAM takes single tensors of streamed blocks; a GPU takes weights of Linear layers with their biases, of streamed
    blocks while there are some, then of blocks in RAM. The largest that fit, evenly spread over the blocks.
    """
    filling: dict[int, dict[int, str]] = {}
    room = room_left(problem, homes, slots)
    used = set(homes)
    for gpu in problem.gpus:
        for home in ("disk", "ram"):
            # What goes to a GPU passes through the ring and the staging buffers, which take RAM.
            slot = max((u.slot_bytes for u in problem.units if u.kind == "block" and homes[u.index] == home), default=0)
            more = slots * max(slot - ring_slot_bytes(problem, homes, filling), 0)
            more += staging_bytes(problem, {*used, gpu.name}) - staging_bytes(problem, used)
            if more <= room["ram"] and _take(problem, homes, home, gpu.name, room, filling):
                room["ram"] -= more
                used.add(gpu.name)
    _take(problem, homes, "disk", "ram", room, filling)
    return filling


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tensors that may rest apart from their module: their places in it, and their bytes there."""

    places: tuple[int, ...]
    nbytes: int


def _take(
    problem: Problem,
    homes: Sequence[str],
    home: str,
    device: str,
    room: dict[str, int],
    filling: dict[int, dict[int, str]],
) -> bool:
    """Move pieces of blocks in ``home`` to a device while it has room. Returns whether it took any."""
    took = False
    known: dict[int, list[_Piece]] = {}  # blocks that are alike share their tensors
    movable: dict[int, list[_Piece]] = {}
    for unit in problem.units:
        if homes[unit.index] != home or unit.kind != "block" or not unit.every_token or unit.copied:
            continue
        if id(unit.tensors) not in known:
            pieces = _pieces(unit, device)
            paying = [p for p in pieces if p.nbytes >= LEAST_BYTES and _pays(problem, unit, p, home, device)]
            known[id(unit.tensors)] = paying
        taken = filling.get(unit.index, {})
        movable[unit.index] = [p for p in known[id(unit.tensors)] if not taken or not taken.keys() & set(p.places)]
    while size := max((p.nbytes for rest in movable.values() for p in rest if p.nbytes <= room[device]), default=0):
        holders = [problem.units[i] for i, rest in movable.items() if any(p.nbytes == size for p in rest)]
        for index in sorted(spread(holders, min(len(holders), room[device] // size))):
            piece = next(p for p in movable[index] if p.nbytes == size)
            movable[index].remove(piece)
            taken = filling.setdefault(index, {})
            if len(taken) + len(piece.places) == len(problem.units[index].tensors):
                continue  # something of a module stays where the module is
            taken.update(dict.fromkeys(piece.places, device))
            room[device] -= size
            took = True
    return took


def _pieces(unit: Unit, device: str) -> list[_Piece]:
    """What may rest apart from its module: single tensors in RAM, where the module computes; Linear layers on a GPU."""
    if device == "ram":
        return [_Piece((place,), tensor.ram) for place, tensor in enumerate(unit.tensors)]
    layers: dict[int, list[int]] = {}
    for place, tensor in enumerate(unit.tensors):
        layers.setdefault(tensor.layer, []).append(place)
    return [
        _Piece(tuple(places), sum(unit.tensors[place].gpu for place in places))
        for places in layers.values()
        if any(unit.tensors[place].matmul for place in places)
    ]


def _pays(problem: Problem, unit: Unit, piece: _Piece, home: str, device: str) -> bool:
    """Whether tensors make a token faster on a device than in the tier of their module.

    There must be less to read, or to compute, by more than what the two hops take.
    """
    devices = by_device(problem)
    hops = 0.0 if device == "ram" else 2 * rates.HOP_S
    tensors = [unit.tensors[place] for place in piece.places]
    read = cost.read_s(sum(t.file for t in tensors), devices["disk"]) if home == "disk" else 0.0
    here = sum(t.ram / cost.decode_rate(devices["ram"], t.key) for t in tensors)
    there = sum(t.gpu / cost.decode_rate(devices[device], t.key) for t in tensors) if hops else here
    return max(read, here - there) > hops
