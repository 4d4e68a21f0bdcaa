"""Why a module rests where it does: one short line each."""

from __future__ import annotations

from outsize.machine.machine import Machine
from outsize.models.spec import ModuleSpec
from outsize.planner.placement import Unit
from outsize.sizes import format_rate, format_size


def reason(machine: Machine, module: ModuleSpec, unit: Unit, home: str, kept_bytes: int = 0) -> str:
    """The reason for one module's home, with the rate at which its bytes are reached there.

    ``kept_bytes`` of a streamed module stay in RAM.
    """
    rate = format_rate(machine.device(home).bytes_per_s)
    if unit.kind == "small" and not unit.rows:
        return (
            "small: rests beside what it computes with"
            if home != "disk"
            else f"not even small ones may rest in RAM; {rate}"
        )
    if unit.rows:
        return "looked up by row: never read whole" if home == "disk" else "looked up by row; there is room to keep it"
    if home == "disk":
        if not unit.every_token:
            return "used for the prompt only: read once, leaves the room to the others"
        kept = f"; {format_size(kept_bytes)} of it stay in RAM" if kept_bytes else ""
        return f"no tier has room left: read at {rate} in every sweep, while others compute{kept}"
    tied = f"; tied to {', '.join(module.tied)}" if module.tied else ""
    if home == "ram":
        others = "no GPU has room left" if machine.gpus else "there is room"
        compact = "" if unit.compact_bytes is None else "; in 12 bits for 16, without loss"
        return f"{others}: computed by the CPU where it lies, {rate}{tied}{compact}"
    return f"resident and computed there: {rate}{tied}"
