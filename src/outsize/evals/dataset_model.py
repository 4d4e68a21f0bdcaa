"""All that is decided for a dataset before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from outsize.engine.loader import Opening
from outsize.engine.request import GenerateRequest, ScoreRequest
from outsize.machine.describe import parse_machine
from outsize.machine.machine import Machine
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec
from outsize.models.survey_cache import folder_spec
from outsize.options import Size, drop_gpus, request_for
from outsize.planner.dataset_cost import Dataset, DatasetPrediction, predict_dataset
from outsize.planner.dataset_plan import plan_dataset
from outsize.planner.plan import Plan, Weights
from outsize.planner.planner import plan_one


@dataclass(frozen=True, slots=True)
class Limits:
    """What a user allows: ``context`` and ``batch`` follow from the dataset where they are None; else as ``load``."""

    context: int | None = None
    batch: int | None = None
    ram: Size | None = None
    gpu_memory: Sequence[Size] | None = None
    no_gpu: bool = False
    weight_limits: Mapping[str, Size] = field(default_factory=dict)


def prepare_dataset(folder: ModelFolder, weights: Weights, dataset: Dataset, limits: Limits) -> Opening:
    """The opening for a dataset, with room for as many sequences at once as makes it fastest.

    Raises UsageError for numbers that make no sense.
    """
    spec = folder_spec(folder)
    machine = parse_machine("local", model_path=folder.path)
    machine = drop_gpus(machine) if limits.no_gpu else machine
    return Opening(folder, spec, machine, plan_for(spec, machine, weights, dataset, limits)[0])


def plan_for(
    spec: ModelSpec, machine: Machine, weights: Weights, dataset: Dataset, limits: Limits
) -> tuple[Plan, DatasetPrediction]:
    """The plan for a dataset on a machine, and what it will take. Sequences longer than the context are left out."""
    context = limits.context or max(dataset.tokens, default=1) + dataset.new_tokens
    if limits.context is None and spec.max_positions is not None:
        context = min(context, spec.max_positions)
    request = request_for(
        spec,
        machine,
        context=context,
        batch=limits.batch or 1,
        prompt=max(min(max(dataset.tokens, default=1), context), 1),
        ram=limits.ram,
        gpu_memory=limits.gpu_memory,
        weight_limits=limits.weight_limits,
    )
    if limits.batch is not None:
        plan = plan_one(spec, machine, request, weights)
        fits = dataset if plan.fits else Dataset(())
        return plan, predict_dataset(spec, machine, plan, fits)
    return plan_dataset(spec, machine, request, weights, dataset)


def dataset_of(requests: Sequence[ScoreRequest] | Sequence[GenerateRequest]) -> Dataset:
    """What planning needs to know of requests: tokens of each sequence, new ones, and how many are scored."""
    tokens: list[int] = []
    new_tokens = scored = 1
    for request in requests:
        if isinstance(request, GenerateRequest):
            tokens.append(len(request.prompt))
            new_tokens = max(new_tokens, request.max_new_tokens)
        else:
            tokens += [len(request.context) + len(choice) - 1 for choice in request.continuations]
            scored = max(scored, *map(len, request.continuations))
    generating = bool(requests) and isinstance(requests[0], GenerateRequest)
    return Dataset(tuple(tokens), new_tokens if generating else 0, scored)
