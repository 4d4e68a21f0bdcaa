"""ModelSpec + Machine + Request -> Plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outsize.errors import UsageError
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner import footprint
from outsize.planner.divide import groups_of
from outsize.planner.keeping import Kept, keep_tensors, without
from outsize.planner.placement import computing, passes
from outsize.planner.plan import WEIGHTS, Item, Plan, Prediction, Request, Usage, Weights
from outsize.planner.prediction import bottleneck, decode_order, first_token_s, judge, token_s
from outsize.planner.problem import Load, Problem, make_problem, module_loads
from outsize.planner.reasons import reason
from outsize.planner.remedies import remedies
from outsize.planner.search import fastest, fits, smallest

DEFAULT_CONTEXT = 2048
DEFAULT_PROMPT = 512
# How much slower than the fastest that fits a format may be and still be chosen, because it changes the model less.
QUALITY_IS_WORTH = 1.5
# How much faster the compact form of weights must make a token before loading takes the trouble to make it.
COMPACT_IS_WORTH = 0.95


def make_request(
    spec: ModelSpec, *, context: int | None = None, batch: int = 1, prompt: int | None = None, **bounds: object
) -> Request:
    """A Request for this model: 2048 tokens of context or as many as it has positions, 512 of them prompt.

    ``bounds`` are Request's ``ram_budget``, ``gpu_budgets``, ``weight_limits`` and ``warm``. Raises UsageError for
    numbers below one and for a context longer than the model's positions.
    """
    most = spec.max_positions
    if context is None:
        context = DEFAULT_CONTEXT if most is None else min(DEFAULT_CONTEXT, most)
    prompt = min(DEFAULT_PROMPT, context) if prompt is None else prompt
    for name, value in (("context", context), ("batch", batch), ("prompt", prompt)):
        if value < 1:
            raise UsageError(f"the {name} must be at least 1", have=str(value))
    if most is not None and context > most:
        raise UsageError(
            f"{spec.id} has fewer positions than the context",
            need=f"{context} tokens",
            have=f"{most} positions",
            remedy=f"--context {most}",
        )
    return Request(context=context, batch=batch, prompt=prompt, **bounds)  # type: ignore[arg-type]


def as_stored(spec: ModelSpec, weights: Weights) -> Weights:
    """What a format means for this checkpoint: one that is quantised already is as it is, and can be nothing else.

    Raises UsageError for another format than it has.
    """
    if not spec.formats or weights == "native":
        return weights
    if spec.formats == {weights}:
        return "native"
    have = " and ".join(sorted(spec.formats))
    raise UsageError(
        f"{spec.id} is quantised already", need=weights, have=have, remedy="--weights native, or the native checkpoint"
    )


def plan_all(
    spec: ModelSpec, machine: Machine, request: Request, formats: Sequence[Weights] | None = None
) -> tuple[Plan, ...]:
    """One plan per format, in the order given. Pure: reads nothing, changes nothing.

    Without ``formats`` native, int8 and int4 are planned; a quantised checkpoint as it is. Raises UsageError for a
    format that the checkpoint cannot be in.
    """
    if formats is None:
        formats = ("native",) if spec.formats else WEIGHTS
    stored = [as_stored(spec, weights) for weights in formats]
    plans = _plan_all(spec, machine, request, stored)
    return tuple(replace(plan, weights=weights) for plan, weights in zip(plans, formats, strict=True))


def _plan_all(spec: ModelSpec, machine: Machine, request: Request, formats: Sequence[Weights]) -> tuple[Plan, ...]:
    loads: dict[Weights, tuple[Load, ...]] = {weights: module_loads(spec, weights) for weights in formats}

    def would_fit(request: Request, weights: Weights) -> bool:
        if weights not in loads:
            loads[weights] = module_loads(spec, weights)
        problem = make_problem(spec, machine, request, weights, loads[weights])
        return fits(problem) and sum(problem.file_bytes) <= machine.disk.capacity_bytes

    plans = []
    for weights in formats:
        problem = make_problem(spec, machine, request, weights, loads[weights])
        plan = _finish(*_best(spec, problem, loads[weights]))
        plans.append(plan if plan.fits else replace(plan, remedies=remedies(spec, machine, plan, would_fit)))
    return tuple(plans)


def plan_one(spec: ModelSpec, machine: Machine, request: Request, weights: Weights = "native") -> Plan:
    """The plan for one format. Where it does not fit, ``fits`` is false and shortfall and remedies say what would."""
    return plan_all(spec, machine, request, (weights,))[0]


def choose(plans: Sequence[Plan]) -> int:
    """Index of the plan to prefer: the one that changes the model least of those near the fastest that fits.

    Native before int8 before int4, unless a lower one is more than 1.5 times as fast. Where none fits, the one that
    lacks least.
    """
    fitting = [i for i, plan in enumerate(plans) if plan.fits]
    if not fitting:
        return min(range(len(plans)), key=lambda i: plans[i].shortfall_bytes)
    fastest = min(plans[i].predicted.token_s for i in fitting)
    near = [i for i in fitting if plans[i].predicted.token_s <= QUALITY_IS_WORTH * fastest]
    return min(near, key=lambda i: WEIGHTS.index(plans[i].weights))


def _best(spec: ModelSpec, problem: Problem, loads: tuple[Load, ...]) -> tuple[Problem, tuple[str, ...], int]:
    """The fastest placement, with weights in RAM as they are in the files or in the compact form, and its problem."""
    found = fastest(problem)
    if found is None:
        return problem, *smallest(problem)
    if not problem.request.compact or all(load.compact_bytes is None for load in loads):
        return problem, *found
    compact = make_problem(spec, problem.machine, problem.request, problem.weights, loads, compact=True)
    other = fastest(compact)
    if other is None or judge(compact, *other) > COMPACT_IS_WORTH * judge(problem, *found):
        return problem, *found
    return compact, *other


def _bytes_at_home(problem: Problem, home: str, index: int) -> int:
    if home == "disk":
        return problem.file_bytes[index]
    unit = problem.units[index]
    return unit.ram_bytes if home == "ram" else unit.resident_bytes


def _finish(problem: Problem, homes: tuple[str, ...], slots: int) -> Plan:
    """The Plan of a placement: items with reasons, bytes per tier, predictions, and what is lacking."""
    ring = [u.slot_bytes for u in problem.units if problem.is_streamed(homes, u.index) or passes(u, homes[u.index])]
    slots = slots if ring else 0
    slot_bytes = max(ring, default=0)
    kept = keep_tensors(problem, homes, slots)
    decode = without(problem, kept)
    usage = _usage(problem, homes, slots * slot_bytes, kept)
    lacking = max(
        usage["ram"].total_bytes - usage["ram"].capacity_bytes,
        sum(problem.file_bytes) - usage["disk"].capacity_bytes,  # all files lie there, resident or not
    )
    items = tuple(
        Item(
            module=module.name,
            bytes=_bytes_at_home(problem, homes[i], i),
            home=homes[i],
            compute=computing(homes[i]),
            reason=reason(problem.machine, module, problem.units[i], homes[i], kept.ram_bytes(i)),
            streamed=problem.is_streamed(homes, i),
            rows=problem.units[i].rows and homes[i] == "disk",
            kept=kept.tensors.get(i, ()),
            compact=problem.units[i].compact_bytes is not None and homes[i] in ("ram", "disk"),
        )
        for i, module in enumerate(problem.spec.modules)
    )
    order = decode_order(problem)
    prediction = Prediction(
        first_token_s=first_token_s(problem, homes, slots),
        token_s=token_s(decode, homes, slots),
        bottleneck=bottleneck(decode, homes),
        disk_bytes_per_token=sum(decode.rest_bytes[i] for i in order if decode.is_streamed(homes, i)),
    )
    return Plan(
        weights=problem.weights,
        request=problem.request,
        fits=lacking <= 0,
        shortfall_bytes=max(lacking, 0),
        items=items,
        ring_slots=slots,
        ring_slot_bytes=slot_bytes,
        usage=usage,
        predicted=prediction,
        file_bytes=sum(problem.rest_bytes),
        groups=groups_of(problem.spec, problem.weights, items),
    )


def _usage(problem: Problem, homes: Sequence[str], ring_bytes: int, kept: Kept) -> dict[str, Usage]:
    """Bytes per tier. The disk's capacity is all of it, free or not: the files may be there already."""
    machine, request = problem.machine, problem.request
    usage = {}
    for index, gpu in enumerate(machine.gpus):
        mine = [u for u in problem.units if homes[u.index] == gpu.name]
        usage[gpu.name] = Usage(
            weights_bytes=sum(u.resident_bytes for u in mine),
            kv_bytes=sum(u.kv_bytes for u in mine),
            workspace_bytes=problem.workspace if mine else 0,
            overhead_bytes=footprint.gpu_overhead_bytes(gpu) if mine else 0,
            capacity_bytes=footprint.gpu_capacity_bytes(machine, index, request),
        )
    usage["ram"] = Usage(
        weights_bytes=sum(kept.ram_bytes(u.index) + u.ram_bytes * (homes[u.index] == "ram") for u in problem.units),
        kv_bytes=sum(u.kv_bytes for u in problem.units if computing(homes[u.index]) == "ram"),
        workspace_bytes=problem.workspace,
        ring_bytes=ring_bytes,
        overhead_bytes=problem.overhead,
        capacity_bytes=footprint.ram_capacity_bytes(machine, request),
    )
    on_disk = sum(size for size, home in zip(problem.file_bytes, homes, strict=True) if home == "disk")
    on_disk -= sum(kept.file_bytes(u.index) for u in problem.units)
    usage["disk"] = Usage(weights_bytes=on_disk, capacity_bytes=machine.disk.capacity_bytes)
    return usage
