"""Why a plan is as it is, in words: reasons for each home, and what would fit where nothing does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec, ModuleSpec
from outsize.planner import footprint
from outsize.planner.placement import Unit
from outsize.planner.plan import WEIGHTS, Plan, Request, Weights
from outsize.sizes import format_rate, format_size

LEAST_CONTEXT = 64  # below this a context is of no use to anybody

Fits = Callable[[Request, Weights], bool]


def reason(machine: Machine, module: ModuleSpec, unit: Unit, home: str) -> str:
    """The reason for one module's home, with the rate at which its bytes are reached there."""
    rate = format_rate(machine.device(home).bytes_per_s)
    if unit.kind == "small" and not unit.rows:
        return (
            "small: rests beside what it computes with"
            if home != "disk"
            else f"not even small ones may rest in RAM; {rate}"
        )
    if unit.experts:
        each = f"{module.per_token} of {module.experts} for each token"
        if home == "disk":
            return f"{each}: in RAM while they are used and there is room, else read at {rate}"
        return f"{each}: {'computed by the CPU' if home == 'ram' else 'resident and computed there'}, {rate}"
    if unit.rows:
        return "looked up by row: never read whole" if home == "disk" else "looked up by row; there is room to keep it"
    if home == "disk":
        if not unit.every_token:
            return "used for the prompt only: read once, leaves the room to the others"
        return f"no tier has room left: read at {rate} in every sweep, while others compute"
    tied = f"; tied to {', '.join(module.tied)}" if module.tied else ""
    if home == "ram":
        others = "no GPU has room left" if machine.gpus else "there is room"
        encoded = "; in 12 bits for 16, without loss" if unit.encoded else ""
        return f"{others}: computed by the CPU where it lies, {rate}{tied}{encoded}"
    return f"resident and computed there: {rate}{tied}"


def fill_reason(device: str) -> str:
    """The reason for tensors that rest apart from their module."""
    return f"fills the room in {'RAM' if device == 'ram' else device} that whole blocks leave"


def remedies(spec: ModelSpec, machine: Machine, plan: Plan, fits: Fits) -> tuple[str, ...]:
    """Sentences that name what would fit: another format, a smaller batch or context, more RAM, a larger drive.

    ``fits`` answers whether a request and a format do.
    """
    request = plan.request
    found = [
        f"--weights {weights} would fit"
        for weights in WEIGHTS[WEIGHTS.index(plan.weights) + 1 :]
        if not spec.formats and fits(request, weights)
    ]
    if request.batch > 1 and fits(replace(request, batch=1), plan.weights):
        batch = _largest(1, request.batch, lambda n: fits(replace(request, batch=n), plan.weights))
        found.append(f"--batch {batch} would fit")
    if fits(replace(request, context=LEAST_CONTEXT), plan.weights) and request.context > LEAST_CONTEXT:
        high = request.context
        context = _largest(LEAST_CONTEXT, high, lambda n: fits(replace(request, context=n), plan.weights))
        found.append(f"--context {context} would fit")
    files = sum(footprint.file_bytes(module, plan.weights) for module in spec.modules)
    return (*found, *_more(machine, plan, files))


def _largest(low: int, high: int, good: Callable[[int], bool]) -> int:
    """The largest number that is good, of low (which is) to high (which is not), by halving."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _more(machine: Machine, plan: Plan, files: int) -> list[str]:
    found = []
    ram, disk = plan.usage["ram"], plan.usage["disk"]
    if ram.total_bytes > ram.capacity_bytes:
        lacking = format_size(ram.total_bytes - ram.capacity_bytes)
        if ram.total_bytes <= machine.ram.free_bytes * (1 - footprint.RAM_MARGIN):
            found.append(f"--ram {_round_up(ram.total_bytes)}MiB would fit: {lacking} more")
        else:
            found.append(f"{lacking} more RAM would fit: {format_size(ram.total_bytes)} for the process")
    if files > disk.capacity_bytes:
        found.append(
            f"{format_size(files - disk.capacity_bytes)} more disk would fit: the files take {format_size(files)}"
        )
    return found


def _round_up(nbytes: int) -> int:
    """MiB, rounded up."""
    return -(-nbytes // footprint.MIB)
