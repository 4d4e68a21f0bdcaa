"""All that is decided for a dataset before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outsize.engine.loader import Opening
from outsize.engine.request import GenerateRequest, ScoreRequest
from outsize.machine.machine import Machine
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec
from outsize.models.survey_cache import folder_spec
from outsize.options import LoadOptions
from outsize.planner.dataset_cost import Dataset, DatasetPrediction, predict_dataset
from outsize.planner.dataset_plan import plan_dataset
from outsize.planner.plan import Plan, Weights
from outsize.planner.planner import plan_one


def prepare_dataset(folder: ModelFolder, dataset: Dataset, options: LoadOptions) -> Opening:
    """The opening for a dataset, with room for as many sequences at once as makes it fastest.

    Raises UsageError for numbers that make no sense.
    """
    spec = folder_spec(folder)
    machine = options.machine(model_path=folder.path)
    return Opening(folder, spec, machine, plan_for(spec, machine, options.format, dataset, options)[0])


def plan_for(
    spec: ModelSpec, machine: Machine, weights: Weights, dataset: Dataset, options: LoadOptions
) -> tuple[Plan, DatasetPrediction]:
    """The plan for a dataset on a machine, and what it will take. Sequences longer than the context are left out."""
    longest = max(dataset.tokens, default=1)
    context = options.context or min(longest + dataset.new_tokens, spec.max_positions or longest + dataset.new_tokens)
    prompt = max(min(longest, context), 1)
    request = replace(options, context=context, prompt=prompt).request(spec, machine)
    if options.batch is not None:
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
