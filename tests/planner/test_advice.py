"""What would help: planned anew, so that the seconds are those of the plan that the options give."""

from dataclasses import replace

from planner.shapes import GIB, decoder, gpu, machine, opt_30b

from outsize.machine.what_if import changed
from outsize.planner.advice import WORTH, advise
from outsize.planner.plan import Request
from outsize.planner.planner import plan_one

SPEC = opt_30b()
SMALL = machine(16 * GIB, disk_rate=2e9)
REQUEST = Request(context=512, prompt=128)


def advice_for(here, spec=SPEC, request=REQUEST, weights="native"):
    plan = plan_one(spec, here, request, weights)
    return plan, advise(spec, here, plan)


def test_what_costs_nothing_comes_first_and_each_is_faster_than_the_plan():
    plan, advice = advice_for(SMALL)
    changes = [one.change for one in advice]
    assert changes[:2] == ["weights in int8", "weights in int4"]
    assert any("more RAM" in change for change in changes)
    assert any(change.startswith("a drive") for change in changes)
    assert changes[-1].startswith("a GPU of 24 GiB")
    assert all(one.plan.predicted.token_s <= WORTH * plan.predicted.token_s for one in advice)


def test_the_options_give_the_plan_that_is_promised():
    _, advice = advice_for(SMALL)
    for one in advice:
        option, value = one.options.split()
        if option == "--what-if":
            assert plan_one(SPEC, changed(SMALL, value), REQUEST).predicted == one.plan.predicted
        else:
            assert plan_one(SPEC, SMALL, REQUEST, value).predicted == one.plan.predicted


def test_all_that_streams_fits_into_the_most_ram_that_is_named():
    _, advice = advice_for(SMALL)
    most = [one for one in advice if "more RAM" in one.change][-1]
    assert most.plan.predicted.disk_bytes_per_token == 0


def test_memory_that_others_hold():
    busy = machine(128 * GIB, gpu(0, 80 * GIB, free=8 * GIB), free=32 * GIB)
    _, advice = advice_for(busy)
    held = [one.change for one in advice if one.change.endswith("others hold")]
    assert held == ["the 72.0 GiB of gpu0 that others hold"]


def test_a_model_that_does_not_fit_is_told_what_would_do():
    tiny = machine(2 * GIB)
    plan, advice = advice_for(tiny)
    assert not plan.fits
    assert advice
    assert all(one.plan.fits for one in advice)


def test_where_a_budget_is_the_limit_more_ram_is_no_advice():
    _, advice = advice_for(machine(256 * GIB), request=replace(REQUEST, ram_budget=8 * GIB))
    assert not any("more RAM" in one.change for one in advice)


def test_nothing_helps_what_is_small_enough():
    assert advice_for(machine(256 * GIB, gpu(0, 24 * GIB)), decoder(2, 64))[1] == ()


def test_a_gpu_like_the_last():
    _, advice = advice_for(machine(64 * GIB, gpu(0, 24 * GIB)))
    assert any(one.change == "one more GPU like gpu0" and one.options == "--what-if gpu=+24GiB" for one in advice)
