"""Seconds of a placement: the first token, every further one, and what holds them up."""

from __future__ import annotations

from collections.abc import Sequence

from outsize.planner import cost
from outsize.planner.keeping import keep_tensors, without
from outsize.planner.placement import computing
from outsize.planner.problem import Problem
from outsize.planner.sweep_time import Step, first_sweep_s, steady_sweep_s

# A placement is judged by a token's seconds, and by the first token's shared among this many.
TOKENS_PER_FIRST = 1000


def judge(problem: Problem, homes: Sequence[str], slots: int) -> float:
    """Seconds by which placements are compared.

    A token's, a thousandth of the first token's, and a twentieth of the reading, even where computing hides it: what
    can rest shall not keep the drive busy.
    """
    decode = without(problem, keep_tensors(problem, homes, slots))
    reading = sum(step.read_s for step in decode_steps(decode, homes))
    return token_s(decode, homes, slots) + first_token_s(problem, homes, slots) / TOKENS_PER_FIRST + reading / 20


def decode_order(problem: Problem) -> list[int]:
    """Indexes of the modules that decode computes, in order; an embedding tied to the head computes at the end."""
    used = [u for u in problem.units if u.every_token]
    return [u.index for u in sorted(used, key=lambda u: u.kind == "head")]


def decode_turns(problem: Problem, homes: Sequence[str]) -> list[Step]:
    """The turns of a decode sweep, one per module: streamed ones are read, all are computed where they rest."""
    disk = problem.machine.disk
    turns = []
    for i in decode_order(problem):
        ring = problem.is_streamed(homes, i)
        compute = problem.decode_s[homes[i]][i]
        if ring:
            compute += problem.convert_s[i] + cost.HANDOVER_S * problem.parts[i]
        elif homes[i] == "disk":
            compute += cost.ROW_READ_S * problem.request.batch
        read = cost.read_s(problem.rest_bytes[i], disk) if ring else 0.0
        turns.append(Step(read, compute, ring))
    return turns


def decode_steps(problem: Problem, homes: Sequence[str]) -> list[Step]:
    """The same, in the steps in which the ring takes them: part by part."""
    turns = zip(decode_order(problem), decode_turns(problem, homes), strict=True)
    return [step for i, turn in turns for step in _in_parts(turn, problem.parts[i])]


def token_s(problem: Problem, homes: Sequence[str], slots: int) -> float:
    """Seconds per token: a steady sweep, its hops between devices, and the generation loop."""
    hops = cost.hops_s([computing(homes[i]) for i in decode_order(problem)])
    return steady_sweep_s(decode_steps(problem, homes), slots) + hops + cost.TOKEN_OPERATIONS_S


def first_token_s(problem: Problem, homes: Sequence[str], slots: int) -> float:
    """Seconds from the start of loading to the first token: the first sweep reads all there is, computing as it comes.

    Computing begins once torch and the model's modules are there; reading does not wait for them. A head that is tied
    to the embedding is read first, wherever it is listed, and multiplied last.
    """
    disk = problem.machine.disk
    first: list[Step] = []
    steps: list[Step] = []
    last: list[Step] = []
    for unit, home in zip(problem.units, homes, strict=True):
        device = problem.machine.device(computing(home))
        rows = unit.rows and home == "disk"
        read = 0.0 if rows else cost.load_s(problem.rest_bytes[unit.index], disk, device)
        compute = problem.prefill_s[device.name][unit.index] + problem.convert_s[unit.index]
        compute += problem.encode_s[unit.index] if home == "ram" else 0.0
        ring = home == "disk" and not rows
        if unit.kind == "head" and problem.spec.modules[unit.index].tied:
            first += _in_parts(Step(read, 0.0, ring), problem.parts[unit.index])
            last.append(Step(0.0, compute, ring=False))
        else:
            steps += _in_parts(Step(read, compute, ring), problem.parts[unit.index])
    start = Step(0.0, cost.WARM_START_S if problem.request.warm else cost.COLD_START_S, ring=False)
    return first_sweep_s([start, *first, *steps, *last], slots) + cost.TOKEN_OPERATIONS_S


def _in_parts(step: Step, parts: int) -> list[Step]:
    """A streamed module's turn as the turns of its parts, taken to be equal; any other's as it is."""
    return [Step(step.read_s / parts, step.compute_s / parts, step.ring)] * parts if step.ring else [step]


def bottleneck(problem: Problem, homes: Sequence[str]) -> str:
    """What takes most of a token: ``disk``, ``memory``, ``cpu matmul`` or ``gpuK memory``.

    The CPU waits for memory where its matmuls reach seven tenths of the memory rate, and is itself the limit elsewhere.
    """
    steps = decode_turns(problem, homes)
    spent: dict[str, float] = {}
    for i, step in zip(decode_order(problem), steps, strict=True):
        name = computing(homes[i])
        spent[name] = spent.get(name, 0.0) + step.compute_s
    if sum(s.read_s for s in steps) > sum(spent.values()):
        return "disk"
    slowest = max(spent, key=lambda name: spent[name], default="ram")
    if slowest != "ram":
        return f"{slowest} memory"
    held = sum(
        u.ram_bytes if homes[u.index] == "ram" else u.resident_bytes
        for u in problem.units
        if u.kind != "lookup" and u.every_token and computing(homes[u.index]) == "ram"
    )
    return "memory" if held / problem.machine.ram.bytes_per_s >= 0.7 * spent.get("ram", 0.0) else "cpu matmul"
