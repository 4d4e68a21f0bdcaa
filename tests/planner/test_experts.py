"""Mixtures of experts: where their experts rest, what the cache holds, and what a token reads."""

from dataclasses import replace

import pytest
from planner.shapes import GIB, decoder, gpu, machine, weight

from outsize.machine.what_if import changed
from outsize.models.resolve import shipped_spec
from outsize.models.spec import CacheSpec, ModuleSpec
from outsize.planner import cost
from outsize.planner.batches import Shape
from outsize.planner.dataset_cost import Dataset, predict_dataset, predict_shapes
from outsize.planner.footprint import expert_copy_bytes, expert_slot_bytes, least_expert_slots
from outsize.planner.plan_json import group_to_json
from outsize.planner.planner import make_request, plan_one
from outsize.planner.routing import scan_from, touched, touched_measured
from outsize.planner.sweep_cost import SweepCost, Turn

A3B = shipped_spec("Qwen/Qwen3-30B-A3B")


def planned(ram, weights="int4", *, spec=A3B, gpus=(), batch=1):
    here = machine(ram, *gpus, disk_rate=2e9)
    return here, plan_one(spec, here, make_request(spec, context=512, batch=batch), weights)


def routed(plan):
    return [group for group in plan.groups if group.experts]


def test_all_rest_in_ram_where_they_fit():
    _, plan = planned(32 * GIB)
    assert plan.fits
    assert {(g.tier, g.residency, g.buffer_bytes) for g in routed(plan)} == {("ram", "resident", 0)}
    assert plan.expert_slots == 48 * 128
    assert plan.predicted.expert_hit_rate is None
    assert plan.predicted.disk_bytes_per_token == 0
    assert {g.use for g in routed(plan)} == {8 / 128}
    assert "8 of 128 for each token" in routed(plan)[0].reason
    assert group_to_json(routed(plan)[0])["experts"] == 128


def test_a_cache_takes_what_is_left_and_tokens_read_what_it_misses():
    _, plan = planned(8 * GIB)
    usage = plan.usage["ram"]
    assert plan.fits
    assert {(g.tier, g.residency) for g in routed(plan)} == {("disk", "cached")}
    assert usage.expert_cache_bytes == plan.expert_slots * plan.expert_slot_bytes
    assert 0 <= usage.capacity_bytes - usage.total_bytes < 2 * plan.expert_slot_bytes
    held = plan.expert_slots / (48 * 128)
    assert plan.predicted.expert_hit_rate == pytest.approx(held)
    used = sum(g.disk_bytes for g in routed(plan)) * 8 / 128
    assert plan.predicted.disk_bytes_per_token == pytest.approx((1 - held) * used, rel=1e-6)
    assert plan.predicted.bottleneck == "disk"
    assert "read at" in routed(plan)[0].reason


def test_more_memory_is_never_slower():
    seconds = [planned(gib * GIB)[1].predicted.token_s for gib in (4, 6, 8, 12, 16, 24, 32)]
    assert seconds == sorted(seconds, reverse=True)


def test_gpus_take_whole_layers_of_experts_after_the_rest():
    _, plan = planned(16 * GIB, gpus=(gpu(0, 8 * GIB),))
    tiers = {group.tier for group in routed(plan)}
    assert "gpu0" in tiers
    assert all(g.tier == "gpu0" for g in plan.groups if g.module.startswith("model.layers.") and not g.experts)
    assert "resident and computed there" in next(g.reason for g in routed(plan) if g.tier == "gpu0")
    assert plan.expert_slots >= sum(g.experts for g in routed(plan) if g.tier == "ram")


def test_some_rest_on_a_gpu_and_the_others_share_a_cache():
    _, plan = planned(4 * GIB, gpus=(gpu(0, 6 * GIB),))
    assert {group.tier for group in routed(plan)} == {"gpu0", "disk"}
    assert plan.usage["ram"].expert_cache_bytes == plan.expert_slots * plan.expert_slot_bytes


def test_earlier_uses_predict_more_hits_than_uniform_routing():
    names = [module.name for module in A3B.modules if module.experts]
    skewed = replace(A3B, uses={name: tuple(1000 if i < 16 else 1 for i in range(128)) for name in names})
    assert planned(8 * GIB, spec=skewed)[1].predicted.expert_hit_rate > 0.9
    partly = replace(A3B, uses={names[0]: skewed.uses[names[0]]})
    assert planned(8 * GIB, spec=partly)[1].predicted.expert_hit_rate == planned(8 * GIB)[1].predicted.expert_hit_rate


def test_a_prompt_reads_nearly_all_once_and_ahead():
    here, plan = planned(8 * GIB)
    model = SweepCost.of(A3B, here, plan)
    whole = sum(group.disk_bytes for group in routed(plan))
    assert model.expert_bytes(512) == pytest.approx((1 - plan.predicted.expert_hit_rate) * whole, rel=1e-3)
    few, many = (model.sweep_s((Turn(1, n, 0, 1),)) for n in (1, 512))
    assert few < many < 512 * few
    assert model.first_s((Turn(1, 4, 0, 1, first=True),), warm=True) > model.sweep_s((Turn(1, 4, 0, 1),))


def test_a_pass_over_all_finds_what_the_cache_holds_however_often_tokens_hit():
    names = [module.name for module in A3B.modules if module.experts]
    skewed = replace(A3B, uses={name: tuple(1000 if i < 16 else 1 for i in range(128)) for name in names})
    here, plan = planned(8 * GIB, spec=skewed)
    model, uniform = SweepCost.of(skewed, here, plan), SweepCost.of(A3B, *planned(8 * GIB))
    assert model.expert_bytes(1) < 0.2 * uniform.expert_bytes(1)
    assert model.expert_bytes(10**6) == pytest.approx(uniform.expert_bytes(10**6), rel=1e-3)


def test_a_dataset_reads_what_all_its_sequences_touch_once_a_sweep():
    here, plan = planned(8 * GIB)
    model = SweepCost.of(A3B, here, plan)
    whole = sum(group.disk_bytes for group in routed(plan))
    scored = predict_dataset(A3B, here, plan, Dataset((100,) * 40))
    assert scored.sweeps == 1
    assert scored.disk_bytes == pytest.approx(whole + model.load_bytes, rel=1e-3)  # the first sweep finds none
    again = predict_dataset(A3B, here, plan, Dataset((100,) * 40), loaded=True)
    assert again.disk_bytes == pytest.approx((1 - plan.predicted.expert_hit_rate) * whole, rel=1e-3)
    answers = predict_shapes(A3B, here, plan, [Shape(1, 1, new_tokens=9, cached=True)] * 3, loaded=True)
    assert answers.sweeps == 9
    assert answers.disk_bytes == round(9 * model.expert_bytes(3))
    assert answers.seconds > answers.disk_bytes / here.disk.bytes_per_s


def test_micro_batches_wait_for_each_other_where_experts_are():
    """They do so in memory too: the weights of an expert are gone through once for all."""
    here, plan = planned(32 * GIB)
    model = SweepCost.of(A3B, here, plan)
    assert (model.streams, model.shared, plan.predicted.disk_bytes_per_token) == (False, True, 0)
    shapes = [Shape(1, 1, new_tokens=5, cached=True)] * 4
    found = predict_shapes(A3B, here, plan, shapes, loaded=True)
    assert (found.sweeps, found.disk_bytes) == (5, 0)
    assert predict_shapes(A3B, here, plan, shapes).disk_bytes == sum(group.disk_bytes for group in plan.groups)
    turn = Turn(16, 1, 100, 16)
    together, apart = model.sweep_s([replace(turn, rows=64)]), model.sweep_s([turn] * 4)
    assert together < apart < 1.3 * together  # attention's weights, for each


def test_usage_adds_up_and_stays_within_capacity():
    for gib, gpus in ((3, ()), (6, ()), (12, ()), (4, (gpu(0, 6 * GIB),)), (24, (gpu(0, 8 * GIB), gpu(1, 8 * GIB)))):
        for weights in ("native", "int8", "int4"):
            _, plan = planned(gib * GIB, weights, gpus=gpus)
            slots = plan.expert_slots * plan.expert_slot_bytes
            in_ram = [g for g in routed(plan) if g.tier == "ram"]
            assert plan.usage["ram"].expert_cache_bytes == slots - sum(g.rest_bytes for g in in_ram)
            assert plan.expert_slots >= sum(g.experts for g in in_ram)
            least = least_expert_slots(48 * 128, plan.expert_slot_bytes)
            assert all(g.tier != "disk" for g in routed(plan)) or plan.expert_slots >= least
            for tier, usage in plan.usage.items():
                assert tier == "disk" or not plan.fits or usage.total_bytes <= usage.capacity_bytes
            assert sum(g.disk_bytes for g in plan.groups) == plan.file_bytes


def test_without_room_for_the_least_cache_a_plan_says_what_is_lacking():
    def within(nbytes):
        return plan_one(A3B, machine(8 * GIB), make_request(A3B, context=512, ram_budget=nbytes), "int4")

    plan = within(GIB)
    assert not plan.fits
    enough, short = (within(GIB + plan.shortfall_bytes + more) for more in (0, -(1 << 17)))
    assert (enough.fits, short.fits) == (True, False)
    assert enough.expert_slots >= least_expert_slots(48 * 128, plan.expert_slot_bytes)


def test_what_if():
    """More RAM holds more experts, a faster drive brings the others sooner."""
    here, plan = planned(8 * GIB)
    request = make_request(A3B, context=512)
    more = plan_one(A3B, changed(here, "ram=+4GiB"), request, "int4")
    faster = plan_one(A3B, changed(here, "disk@4GB/s"), request, "int4")
    assert more.predicted.expert_hit_rate > plan.predicted.expert_hit_rate
    assert more.predicted.disk_bytes_per_token < plan.predicted.disk_bytes_per_token
    assert faster.predicted.disk_bytes_per_token == plan.predicted.disk_bytes_per_token
    assert faster.predicted.token_s < 0.6 * plan.predicted.token_s


def test_computing_experts_takes_the_bytes_of_those_that_are_used():
    here, module = machine(8 * GIB), next(module for module in A3B.modules if module.experts)
    work = cost.module_work(A3B, module, "int4")
    one, two = (cost.compute_s(work, here.ram, n, 0) for n in (1, 2))
    assert one < two < 2 * one
    assert cost.compute_s(work, here.ram, 0, 0) < one


@pytest.mark.parametrize(("experts", "per_token", "tokens"), [(8, 2, 9), (128, 8, 36), (256, 8, 73), (4, 4, 1)])
def test_from_so_many_tokens_on_a_pass_uses_nearly_all(experts, per_token, tokens):
    assert scan_from(experts, per_token) == tokens
    assert touched(experts, per_token, tokens) >= 0.9
    assert tokens == 1 or touched(experts, per_token, tokens - 1) < 0.9


def test_a_slot_takes_one_expert_and_the_slack_of_its_reads():
    tensors = (weight("e.up", 4, 100, 64), replace(weight("e.down", 4, 64, 100), runtime="float32"))
    module = ModuleSpec("e", "experts", "", tensors, CacheSpec(), (), 4, 2)
    one = 2 * 64 * 100 * 2
    assert one + 4 * 4096 <= expert_slot_bytes(module, "native") < one + 5 * 4096
    assert expert_copy_bytes(module, "native") == 64 * 100 * 4
    assert least_expert_slots(10, 1 << 20) == 10
    assert least_expert_slots(1000, 1 << 20) == 64
    assert least_expert_slots(1000, 1 << 30) == 2


def test_single_tensors_of_streamed_blocks_take_their_room_from_the_cache():
    spec = decoder(6, 1024)
    tensors = tuple(weight(f"layers.3.experts.{part}", 16, 1024, 1024) for part in ("up", "down"))
    experts = ModuleSpec("layers.3.experts", "experts", "", tensors, CacheSpec(), (), 16, 2)
    spec = replace(spec, modules=(*spec.modules[:5], experts, *spec.modules[5:]))
    fitting = [plan for mib in range(540, 900, 12) if (plan := planned(mib << 20, "native", spec=spec)[1]).fits]
    assert {g.tier for plan in fitting for g in routed(plan)} == {"ram", "disk"}
    for plan in fitting:
        assert plan.usage["ram"].total_bytes <= plan.usage["ram"].capacity_bytes
        assert 2 <= plan.expert_slots <= 32


def test_a_format_that_nobody_measured_is_as_fast_as_a_share_of_its_like():
    ram = machine(8 * GIB).ram
    for key, like in (("fp8", "int8"), ("mxfp4", "int4")):
        assert cost.decode_rate(ram, key) == pytest.approx(0.6 * cost.decode_rate(ram, like))


def test_many_sequences_use_fewer_experts_where_some_are_used_more_than_others():
    names = [module.name for module in A3B.modules if module.experts]
    uses = tuple(1000 if i < 16 else 1 for i in range(128))
    skewed = replace(A3B, uses=dict.fromkeys(names, uses))
    for spec, share in ((A3B, touched(128, 8, 16)), (skewed, touched_measured(uses, 8, 16))):
        here, plan = planned(8 * GIB, spec=spec, batch=16)
        whole = sum(group.disk_bytes for group in routed(plan))
        used = SweepCost.of(spec, here, plan).expert_bytes(16) / (1 - plan.predicted.expert_hit_rate) / whole
        assert used == pytest.approx(share)
    assert touched_measured(uses, 8, 16) < 0.2 < touched(128, 8, 16)
