"""ModelSpec + Machine + Request -> Plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outsize.errors import UsageError
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner import footprint
from outsize.planner.explain import remedies
from outsize.planner.fill import expert_slots, ring_slot_bytes, staging_bytes
from outsize.planner.groups import groups_of
from outsize.planner.placement import computing
from outsize.planner.plan import WEIGHTS, Plan, Request, Usage, Weights
from outsize.planner.problem import Problem, make_problem
from outsize.planner.search import Found, fastest, fits, smallest
from outsize.planner.sweep_cost import SweepCost
from outsize.planner.weight_group import WeightGroup

DEFAULT_CONTEXT = 2048
DEFAULT_PROMPT = 512
# How much slower than the fastest that fits a format may be and still be chosen, because it changes the model less.
QUALITY_IS_WORTH = 1.5
# How much faster 12-bit weights must make a token before loading takes the trouble to make them.
BF12_IS_WORTH = 0.95


def make_request(
    spec: ModelSpec, *, context: int | None = None, batch: int = 1, prompt: int | None = None, **bounds: object
) -> Request:
    """A Request for this model: 2048 tokens of context or as many as it has positions, 512 of them prompt.

    ``bounds`` are Request's ``ram_budget``, ``gpu_budgets``, ``weight_limits``, ``warm``, ``bf12`` and ``triton``.
    Raises UsageError for numbers below one and for a context longer than the model's positions.
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
    def would_fit(request: Request, weights: Weights) -> bool:
        problem = make_problem(spec, machine, request, weights)
        return fits(problem) and problem.file_bytes <= machine.disk.capacity_bytes

    plans = []
    for weights in formats:
        plan = _finish(*_best(make_problem(spec, machine, request, weights)))
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


def _best(problem: Problem) -> tuple[Problem, Found]:
    """The fastest placement, with weights in RAM as they are in the files or in 12 bits, and its problem."""
    found = fastest(problem)
    if found is None:
        return problem, smallest(problem)
    if not problem.request.bf12:
        return problem, found
    encoded = make_problem(problem.spec, problem.machine, problem.request, problem.weights, bf12=True)
    other = fastest(encoded) if any(unit.encoded for unit in encoded.units) else None
    if other is None or other.estimate_s > BF12_IS_WORTH * found.estimate_s:
        return problem, found
    return encoded, other


def _finish(problem: Problem, found: Found) -> Plan:
    """The Plan of a placement: groups with reasons, bytes per tier, predictions, and what is lacking."""
    groups = groups_of(problem, found.homes, found.filling)
    slot_bytes = ring_slot_bytes(problem, found.homes, found.filling)
    slots = found.slots if slot_bytes else 0
    held = expert_slots(problem, found.homes, found.filling, slots)
    usage = _usage(problem, found, groups, slots * slot_bytes, held * problem.expert_slot_bytes)
    lacking = max(
        usage["ram"].total_bytes - usage["ram"].capacity_bytes,
        problem.file_bytes - usage["disk"].capacity_bytes,  # all files lie there, resident or not
    )
    model = SweepCost(problem.spec, problem.machine, problem.weights, groups, slots, held)
    return Plan(
        weights=problem.weights,
        request=problem.request,
        fits=lacking <= 0,
        shortfall_bytes=max(lacking, 0),
        groups=groups,
        ring_slots=slots,
        ring_slot_bytes=slot_bytes,
        usage=usage,
        predicted=model.predict(problem.request),
        file_bytes=sum(unit.rest_bytes for unit in problem.units),
        expert_slots=held,
        expert_slot_bytes=problem.expert_slot_bytes,
    )


def _usage(
    problem: Problem, found: Found, groups: Sequence[WeightGroup], ring_bytes: int, expert_bytes: int
) -> dict[str, Usage]:
    """Bytes per tier. The disk's capacity is all of it, free or not: the files may be there already."""
    machine, request = problem.machine, problem.request
    weights: dict[str, int] = {}
    kv: dict[str, int] = {}
    for group in groups:
        weights[group.tier] = weights.get(group.tier, 0) + group.rest_bytes
    for unit, home in zip(problem.units, found.homes, strict=True):
        kv[computing(home)] = kv.get(computing(home), 0) + unit.kv_bytes
    usage = {}
    for index, gpu in enumerate(machine.gpus):
        used = gpu.name in weights
        usage[gpu.name] = Usage(
            weights_bytes=weights.get(gpu.name, 0),
            kv_bytes=kv.get(gpu.name, 0),
            workspace_bytes=problem.workspace if used else 0,
            overhead_bytes=footprint.gpu_overhead_bytes(gpu) if used else 0,
            capacity_bytes=footprint.gpu_capacity_bytes(machine, index, request),
        )
    usage["ram"] = Usage(
        weights_bytes=weights.get("ram", 0),
        kv_bytes=kv.get("ram", 0),
        workspace_bytes=problem.workspace,
        ring_bytes=ring_bytes,
        expert_cache_bytes=expert_bytes - sum(g.rest_bytes for g in groups if g.experts and g.tier == "ram"),
        overhead_bytes=problem.overhead + staging_bytes(problem, weights),
        capacity_bytes=footprint.ram_capacity_bytes(machine, request),
    )
    usage["disk"] = Usage(weights_bytes=weights.get("disk", 0), capacity_bytes=machine.disk.capacity_bytes)
    return usage
