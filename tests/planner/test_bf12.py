"""bfloat16 weights that RAM holds in 12 bits: counted exactly, and chosen where they make a token faster."""

from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, decoder, gpu, machine

from outsize.models.bf12_layout import bf12_bytes
from outsize.planner.footprint import bf12_bytes_of
from outsize.planner.plan import Request
from outsize.planner.planner import make_request, plan_all, plan_one

SPEC = decoder(16, 2048, 1000)  # blocks of 96 MiB


def has_bf12(plan):
    return any(group.format == "bf12" for group in plan.groups)


def asked(limit=None, *, bf12=True, spec=SPEC, **more):
    limits = () if limit is None else (("ram", limit),)
    return make_request(spec, context=64, weight_limits=limits, bf12=bf12, **more)


def test_the_bytes_of_a_weight_are_exact_and_a_quarter_less():
    assert bf12_bytes(4096, 4096) == 4096 * 32 * 193 + 4096 * 4 + 64 + (4 * int(0.002 * 4096 * 4096) + 63) // 64 * 64
    assert bf12_bytes(4096, 16384) / (4096 * 16384 * 2) == pytest.approx(0.758, abs=0.001)
    assert bf12_bytes(3, 100) > 600  # rows much shorter than a group lose
    with pytest.raises(ValueError, match="65537"):
        bf12_bytes(1, 65537)


def test_a_spilled_model_is_held_in_twelve_bits_and_streams_less():
    here = machine(64 * GIB)
    plain = plan_one(SPEC, here, asked(700 * MIB, bf12=False))
    plan = plan_one(SPEC, here, asked(700 * MIB))
    assert plan.fits
    assert not has_bf12(plain)
    assert plan.usage["ram"].weights_bytes <= 700 * MIB
    assert plan.predicted.disk_bytes_per_token < 0.8 * plain.predicted.disk_bytes_per_token
    assert plan.predicted.token_s < 0.8 * plain.predicted.token_s
    module = next(m for m in SPEC.modules if m.role == "block")
    for group in plan.groups:
        if group.format == "bf12" and len(group.tensors) > 1:
            assert group.rest_bytes == bf12_bytes_of(module, "native")
            assert "12 bits" in group.reason
    assert has_bf12(plan)
    assert plan.ring_slots >= 2  # what turns out not to become smaller has a way


def test_tensors_that_stay_of_streamed_blocks_are_in_twelve_bits_too():
    plan = plan_one(SPEC, machine(64 * GIB), asked(700 * MIB))
    kept = [group for group in plan.groups if group.format == "bf12" and len(group.tensors) == 1]
    assert kept
    assert all(group.rest_bytes < 0.77 * group.disk_bytes for group in kept)


@pytest.mark.parametrize(("rate", "bf12"), [(25e9, False), (40e9, True)])
def test_what_fits_rests_as_it_is_unless_a_token_is_faster(rate, bf12):
    here = machine(64 * GIB)
    rates = {"bfloat16": 40e9, "bf12": rate}  # a weight in 12 bits has 0.754 of the bytes
    here = replace(here, devices=(replace(here.ram, matmul_bytes_per_s=rates), here.disk))
    plan = plan_one(SPEC, here, asked())
    assert plan.predicted.disk_bytes_per_token == 0
    assert has_bf12(plan) == bf12


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_types_have_no_such_form(dtype):
    spec = decoder(16, 2048, 1000, dtype=dtype)
    plan = plan_one(spec, machine(64 * GIB), asked(700 * MIB, spec=spec))
    assert not has_bf12(plan)


def test_gpus_and_quantised_weights_are_as_they_are():
    here = machine(64 * GIB, gpu(0, GIB))
    for plan in plan_all(SPEC, here, asked(100 * MIB)):
        assert plan.fits
        for group in plan.groups:
            if group.tier == "gpu0" or plan.weights != "native":
                assert group.format != "bf12"


def test_long_rows_stay_as_they_are():
    spec = decoder(2, 256, 1000, inner=70000)
    block = next(m for m in spec.modules if m.role == "block")
    tensors = [replace(t, shape=(256, 70000)) for t in block.tensors if "down" in t.name]
    assert bf12_bytes_of(replace(block, tensors=tuple(tensors)), "native") is None


def test_the_first_token_waits_for_the_change_of_form():
    here = machine(64 * GIB, disk_rate=30e9)
    request = Request(context=64, prompt=1, weight_limits=(("ram", 700 * MIB),), warm=True)
    plain = plan_one(SPEC, here, request)
    plan = plan_one(SPEC, here, replace(request, bf12=True))
    if has_bf12(plan):
        assert plan.predicted.first_token_s > plain.predicted.first_token_s
