from __future__ import annotations

from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, decoder, encoder_decoder, machine

from outsize.models.spec import WorkspaceSpec
from outsize.planner.batches import Shape
from outsize.planner.dataset_cost import Dataset, predict_dataset, predict_shapes, shapes_of
from outsize.planner.plan import Request
from outsize.planner.planner import plan_one
from outsize.planner.sweep_cost import SweepCost, Turn

MEASURED = WorkspaceSpec(base=0, linear=40 * 512, square=0.0)
SPEC = replace(decoder(blocks=6, hidden=512, vocab=1000), workspace=MEASURED, resting=MEASURED)


def planned(spec=SPEC, *, weights=None, ram=8 * GIB, **request):
    here = machine(ram)
    limits = (("ram", weights),) if weights is not None else ()
    return here, plan_one(spec, here, Request(context=128, prompt=64, weight_limits=limits, warm=True, **request))


def test_scoring_is_one_sweep():
    here, plan = planned(weights=0)
    found = predict_dataset(SPEC, here, plan, Dataset((100,) * 40), loaded=True)
    assert found.sweeps == 1
    assert found.micro_batches == 4
    assert found.disk_bytes == plan.predicted.disk_bytes_per_token
    whole = predict_dataset(SPEC, here, plan, Dataset((100,) * 40))
    assert whole.sweeps == 1
    assert whole.seconds > found.seconds
    assert whole.disk_bytes >= found.disk_bytes


def test_generating_is_one_sweep_for_a_token():
    here, plan = planned(weights=0)
    found = predict_dataset(SPEC, here, plan, Dataset((100,) * 40, new_tokens=32))
    assert found.sweeps == 32
    more = predict_dataset(SPEC, here, plan, Dataset((100,) * 80, new_tokens=32))
    assert more.sweeps == 32
    assert found.seconds < more.seconds < 2 * found.seconds


def test_little_memory_makes_more_sweeps():
    here, plan = planned(weights=0)
    tight_here, tight = planned(weights=0, ram_budget=plan.usage["ram"].total_bytes + 4 * MIB)
    data = Dataset((100,) * 400)
    assert predict_dataset(SPEC, here, plan, data).sweeps == 1
    several = predict_dataset(SPEC, tight_here, tight, data)
    assert several.sweeps > 2
    assert several.disk_bytes > (several.sweeps - 1) * tight.predicted.disk_bytes_per_token


def test_what_does_not_fit_is_left_out():
    here, plan = planned(weights=0)
    assert [s.tokens for s in shapes_of(SPEC, plan, Dataset((10, 10**9)))] == [10]
    nothing = predict_dataset(SPEC, here, plan, Dataset(()))
    assert (nothing.sweeps, nothing.seconds, nothing.disk_bytes) == (0, 0.0, 0)


def test_a_resident_model_sweeps_for_each():
    here, plan = planned()
    shapes = [Shape(2, 10, new_tokens=3, cached=True)] * 4
    loaded = predict_shapes(SPEC, here, plan, shapes, loaded=True)
    assert (loaded.sweeps, loaded.disk_bytes) == (12, 0)
    # the load is one sweep for all
    cold = predict_shapes(SPEC, here, plan, shapes)
    assert cold.sweeps == 9
    assert cold.disk_bytes == SPEC.weight_bytes
    assert cold.seconds > loaded.seconds


def test_a_sweep_is_never_faster_than_its_bytes():
    here, plan = planned(weights=0)
    found = predict_dataset(SPEC, here, plan, Dataset((10,), new_tokens=50), loaded=True)
    assert found.seconds >= 50 * plan.predicted.disk_bytes_per_token / here.disk.bytes_per_s
    assert found.seconds == pytest.approx(50 * plan.predicted.token_s, rel=0.2)


def test_the_first_step_computes_prompts_and_every_other_one_token_of_each():
    here, plan = planned()  # resident: what is computed is all that takes time

    def seconds(shape):
        return predict_shapes(SPEC, here, plan, [shape], loaded=True).seconds

    first = seconds(Shape(4, 100, new_tokens=1, cached=True))
    step = seconds(Shape(4, 1, past=102, scored=4))  # in the middle of five
    assert first == pytest.approx(seconds(Shape(4, 100, scored=4)))
    assert first > 2 * step
    assert seconds(Shape(4, 100, new_tokens=5, cached=True)) == pytest.approx(first + 4 * step)
    assert seconds(Shape(4, 100, scored=400)) > 1.01 * seconds(Shape(4, 100, scored=4))


def test_two_stacks_and_bf12_weights():
    spec = encoder_decoder()
    here, plan = planned(spec, weights=0)
    assert predict_dataset(spec, here, plan, Dataset((20,) * 5, new_tokens=4)).sweeps == 4
    # In a sweep that some begin in and others go on in, the encoder computes for those that begin.
    model = SweepCost(spec, here, plan.weights, plan.groups, plan.ring_slots)
    begins = Turn(1, 20, 0, 1, first=True)
    goes_on = Turn(1, 1, 2, 1, encoded=20)
    assert model.sweep_s([goes_on]) < model.sweep_s([begins]) < model.sweep_s([begins, goes_on])
    here, plan = planned()
    blocks = [group for group in plan.groups if group.module.startswith("layers")]
    made = replace(plan, groups=tuple(replace(g, format="bf12") if g in blocks else g for g in plan.groups))
    data = Dataset((20,) * 5)
    assert predict_dataset(SPEC, here, made, data).seconds > predict_dataset(SPEC, here, plan, data).seconds
