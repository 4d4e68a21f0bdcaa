"""The plan for a dataset: how much memory to keep from the weights, so that more sequences share a sweep. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.dataset_cost import Dataset, DatasetPrediction, predict_shapes, shapes_of
from outsize.planner.plan import WEIGHTS, Plan, Request, Weights
from outsize.planner.planner import QUALITY_IS_WORTH, choose, plan_one

# How much less time a larger batch must take to be chosen, and how many in a row may fail to before none is tried.
IS_WORTH = 0.98
TRIES = 2


def plan_dataset(
    spec: ModelSpec, machine: Machine, request: Request, weights: Weights, dataset: Dataset
) -> tuple[Plan, DatasetPrediction]:
    """The plan that is through with the dataset first, of those for 1, 2, 4, 8, ... sequences at once.

    Memory that is kept for sequences is taken from the weights that stay: fewer sweeps, of more streamed bytes each.
    First of all, no sequence is to be left out for lack of memory.
    ``request.batch`` is where the search begins. Where not even that fits, its plan, which says so.
    """
    best: tuple[Plan, DatasetPrediction] | None = None
    least = (len(dataset.tokens) + 1, 0.0)
    failed = 0
    for batch in _doubling(request.batch, len(dataset.tokens)):
        plan = plan_one(spec, machine, replace(request, batch=batch), weights)
        if not plan.fits:
            return best or (plan, DatasetPrediction(0, 0.0, 0, 0))
        shapes = shapes_of(spec, plan, dataset)
        left_out = len(dataset.tokens) - sum(shape.rows for shape in shapes)
        prediction = predict_shapes(spec, machine, plan, shapes)
        if left_out < least[0] or (left_out == least[0] and prediction.seconds < IS_WORTH * least[1]):
            best, least, failed = (plan, prediction), (left_out, prediction.seconds), 0
        else:
            failed += 1
        if failed == TRIES:
            break
    assert best is not None
    return best


def choose_for_dataset(plans: Sequence[Plan], predictions: Sequence[DatasetPrediction]) -> int:
    """Index of the plan to prefer: ``choose``'s rule, with the seconds of the whole dataset."""
    fitting = [i for i, plan in enumerate(plans) if plan.fits]
    if not fitting:
        return choose(plans)
    fastest = min(predictions[i].seconds for i in fitting)
    near = [i for i in fitting if predictions[i].seconds <= QUALITY_IS_WORTH * fastest]
    return min(near, key=lambda i: WEIGHTS.index(plans[i].weights))


def _doubling(first: int, most: int) -> Iterator[int]:
    batch = first
    yield batch
    while batch < most:
        batch = min(2 * batch, most)
        yield batch
