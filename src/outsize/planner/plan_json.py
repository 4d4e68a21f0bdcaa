"""The Plan as JSON: the object that ``outsize plan --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from outsize.machine.describe import machine_summary
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.advice import Advice
from outsize.planner.plan import Plan, Request
from outsize.planner.weight_group import WeightGroup

SCHEMA = 1


def plans_to_json(
    spec: ModelSpec, machine: Machine, request: Request, plans: Sequence[Plan], best: int
) -> dict[str, Any]:
    """All of an answer: the model, the machine, the request and the plans; ``best`` is an index."""
    return {
        "schema": SCHEMA,
        "model": model_to_json(spec),
        "machine": machine_summary(machine),
        "request": {"context": request.context, "batch": request.batch, "prompt": request.prompt},
        "best": best,
        "plans": [plan_to_json(plan) for plan in plans],
    }


def model_to_json(spec: ModelSpec) -> dict[str, Any]:
    """The facts of a model that matter here; ``parameters`` counts tied weights once."""
    return {
        "id": spec.id,
        "architecture": spec.architecture,
        "parameters": spec.parameters,
        "active_parameters": spec.active_parameters,
        "dtype": spec.dtype,
        "weight_bytes": spec.weight_bytes,
        "blocks": len(spec.blocks),
        "kv_bytes_per_token": spec.kv_bytes_per_token,
    }


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """One plan: where every weight group rests and computes and why, bytes per tier, predictions."""
    return {
        "weights": plan.weights,
        "fits": plan.fits,
        "shortfall_bytes": plan.shortfall_bytes,
        "remedies": list(plan.remedies),
        "placement": [group_to_json(group) for group in plan.groups],
        "experts": {"slots": plan.expert_slots, "slot_bytes": plan.expert_slot_bytes},
        "ring": {"slots": plan.ring_slots, "slot_bytes": plan.ring_slot_bytes},
        "devices": {tier: {**asdict(usage), "total_bytes": usage.total_bytes} for tier, usage in plan.usage.items()},
        "predicted": asdict(plan.predicted),
    }


def advice_to_json(advice: Advice) -> dict[str, Any]:
    """One change, and what comes of it."""
    plan = advice.plan
    return {
        "change": advice.change,
        "options": advice.options,
        "weights": plan.weights,
        "predicted": asdict(plan.predicted),
    }


def group_to_json(group: WeightGroup) -> dict[str, Any]:
    """One weight group: whose it is, its bytes at rest, where it rests and computes, and why."""
    return {
        "module": group.module,
        "bytes": group.rest_bytes,
        "home": group.tier,
        "compute": group.device,
        "format": group.format,
        "residency": group.residency,
        "experts": group.experts,
        "use": group.use,
        "tensors": list(group.tensors),
        "reason": group.reason,
    }
