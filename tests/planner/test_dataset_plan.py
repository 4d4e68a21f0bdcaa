from __future__ import annotations

from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, decoder, machine

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec, WorkspaceSpec
from outsize.planner import dataset_plan
from outsize.planner.dataset_cost import Dataset, DatasetPrediction, predict_dataset
from outsize.planner.dataset_plan import choose_for_dataset, plan_dataset
from outsize.planner.plan import Plan, Request, Weights
from outsize.planner.planner import plan_one

MEASURED = WorkspaceSpec(base=0, linear=40 * 512, square=0.0)
SPEC = replace(decoder(blocks=6, hidden=512, vocab=1000), workspace=MEASURED, resting=MEASURED)
DATA = Dataset((100,) * 200, new_tokens=32)


def request(**more: object) -> Request:
    return Request(context=132, prompt=100, warm=True, **more)  # type: ignore[arg-type]


def test_memory_is_kept_for_as_many_sequences_as_makes_the_whole_fastest() -> None:
    here = machine(8 * GIB, disk_rate=50e6)
    least = plan_one(SPEC, here, request())
    tight = request(ram_budget=least.usage["ram"].total_bytes)
    plan, found = plan_dataset(SPEC, here, tight, "native", DATA)
    plans = {batch: plan_one(SPEC, here, replace(tight, batch=batch)) for batch in (1, 2, 4, 8, 16)}
    each = {batch: predict_dataset(SPEC, here, plan, DATA) for batch, plan in plans.items() if plan.fits}
    assert not each[1].micro_batches  # there, memory for none of them is left
    assert plan.request.batch == min((b for b in each if each[b].micro_batches), key=lambda b: each[b].seconds)
    assert 1 < plan.request.batch < 16
    assert found.seconds < 0.9 * each[2].seconds
    assert found == each[plan.request.batch]


def test_where_everything_fits_nothing_is_taken_from_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def counted(spec: ModelSpec, machine: Machine, request: Request, weights: Weights) -> Plan:
        tried.append(request.batch)
        return plan_one(spec, machine, request, weights)

    monkeypatch.setattr(dataset_plan, "plan_one", counted)
    here = machine(8 * GIB)
    plan, found = plan_dataset(SPEC, here, request(), "native", DATA)
    assert plan.request.batch == 1
    assert found.micro_batches > 0
    assert tried == [1, 2, 4]  # two that are no better, and no more


def test_one_sequence_is_one_plan() -> None:
    plan, _ = plan_dataset(SPEC, machine(8 * GIB), request(), "native", Dataset((100,)))
    assert plan.request.batch == 1


def test_what_does_not_fit_says_so() -> None:
    plan, found = plan_dataset(SPEC, machine(8 * GIB), request(ram_budget=1 * MIB), "native", DATA)
    assert not plan.fits
    assert found.sweeps == 0


def test_the_search_ends_where_the_next_one_does_not_fit() -> None:
    here = machine(8 * GIB)
    least = plan_one(SPEC, here, request(weight_limits=(("ram", 0),)))
    tight = request(ram_budget=least.usage["ram"].total_bytes + 8 * MIB)
    plan, _ = plan_dataset(SPEC, here, tight, "native", Dataset((100,) * 400, new_tokens=32))
    assert plan.fits


def test_the_format_that_changes_the_model_least_of_those_near_the_fastest() -> None:
    here = machine(8 * GIB)
    plans = [plan_one(SPEC, here, request(), weights) for weights in ("native", "int8", "int4")]  # type: ignore[arg-type]

    def chosen(*seconds: float) -> int:
        return choose_for_dataset(plans, [DatasetPrediction(1, s, 1, 0) for s in seconds])

    assert chosen(1.4, 1.2, 1.0) == 0
    assert chosen(2.0, 1.4, 1.0) == 1
    assert chosen(9.0, 3.0, 1.0) == 2
    none = [replace(plan, fits=False, shortfall_bytes=5 - i) for i, plan in enumerate(plans)]
    assert choose_for_dataset(none, [DatasetPrediction(0, 0.0, 0, 0)] * 3) == 2
