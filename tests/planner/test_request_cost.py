from __future__ import annotations

import pytest
from planner.shapes import GIB, decoder, machine

from outsize.planner.plan import Request
from outsize.planner.planner import plan_one
from outsize.planner.request_cost import Sequencing, answer_s, first_token_s, waiting_s
from outsize.planner.sweep_cost import SweepCost

PROMPT = Sequencing(100, 0, 10)
DECODING = Sequencing(1, 150, 20)


@pytest.fixture
def cost():
    spec, here = decoder(blocks=6, hidden=512), machine(8 * GIB)
    plan = plan_one(spec, here, Request(context=256, prompt=64, weight_limits=(("ram", 0),), warm=True))
    return SweepCost(spec, here, plan.weights, plan.groups, plan.ring_slots)


def test_a_first_token_waits_for_the_sweep_that_is_underway(cost):
    alone = first_token_s(cost, [PROMPT], [])
    assert alone == cost.sweep_s([PROMPT.turn])
    assert first_token_s(cost, [PROMPT], [DECODING]) > alone + cost.sweep_s([DECODING.steady]) / 2


def test_an_answer_takes_a_sweep_for_each_token(cost):
    rest = answer_s(cost, [PROMPT], []) - first_token_s(cost, [PROMPT], [])
    assert rest == pytest.approx(9 * cost.sweep_s([PROMPT.steady]))
    several = answer_s(cost, [PROMPT] * 8, [DECODING] * 8)
    assert answer_s(cost, [PROMPT], []) < several < 8 * answer_s(cost, [PROMPT], [])  # what is streamed is shared
    assert answer_s(cost, [], []) == first_token_s(cost, [], [])


def test_those_that_wait_wait_for_those_ahead(cost):
    assert waiting_s(cost, [], []) == 0
    free = waiting_s(cost, [DECODING], [])
    assert free == pytest.approx(20 * cost.sweep_s([DECODING.steady]))
    assert waiting_s(cost, [DECODING], [PROMPT]) > free
