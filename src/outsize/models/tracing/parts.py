"""A block in parts: how much of it must be in memory at the same time while it computes."""

from __future__ import annotations

from outsize.models.tracing.spans import Turns
from outsize.models.tracing.units import Unit, Weight

LEAST_BYTES = 16 << 20  # of a part: two reads; more turns than that cost more than the memory they save


def divide(unit: Unit, turns: Turns) -> dict[str, int]:
    """The part of each weight of a unit, by name; all 0 where it cannot be divided.

    Modules that own weights are taken in the order in which they computed. Between two of them a part may end if all
    before have computed for the last time when the next begins. Parts are filled up to the size of the unit's largest
    module, for a ring of equal buffers is as large as that anyway, or to 16 MiB. A unit whose weights are used past
    their modules, or that shares weights with others, stays whole.
    """
    owners: dict[int, list[Weight]] = {}
    for weight in unit.weights:
        owners.setdefault(id(weight.slots[0].module), []).append(weight)
    whole = dict.fromkeys((weight.name for weight in unit.weights), 0)
    shared = any(len(weight.slots) > 1 for weight in unit.weights)
    strays = any(weight.name in turns.strays for weight in unit.weights)
    if unit.role != "block" or shared or strays or any(owner not in turns.spans for owner in owners):
        return whole
    in_order = sorted(owners, key=lambda owner: turns.spans[owner])
    sizes = {owner: sum(_nbytes(weight) for weight in owned) for owner, owned in owners.items()}
    most, part, held, busy_until = max(LEAST_BYTES, *sizes.values()), 0, 0, 0
    for owner in in_order:
        begin, end = turns.spans[owner]
        if held and begin > busy_until and held + sizes[owner] > most:
            part, held = part + 1, 0
        for weight in owners[owner]:
            whole[weight.name] = part
        held += sizes[owner]
        busy_until = max(busy_until, end)
    return whole


def _nbytes(weight: Weight) -> int:
    size = weight.dtype.itemsize
    for extent in weight.shape:
        size *= extent
    return size
