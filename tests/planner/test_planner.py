"""Plans of whole models."""

from collections import Counter
from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, bloom, decoder, encoder_decoder, gpu, machine, opt_30b

from outsize.errors import UsageError
from outsize.models.formats import Packing
from outsize.planner.plan import Request
from outsize.planner.planner import as_stored, choose, make_request, plan_all, plan_one

TWO_GPUS = machine(64 * GIB, gpu(0, 24 * GIB), gpu(1, 24 * GIB), ram_rate=90e9)


def homes(plan):
    return Counter(plan.homes.values())


def checked(spec, here, request, plan):
    """What is true of every plan that fits."""
    assert plan.fits
    assert plan.shortfall_bytes == 0
    assert plan.remedies == ()
    assert list(dict.fromkeys(group.module for group in plan.groups)) == [module.name for module in spec.modules]
    for module in spec.modules:  # every tensor in one group
        held = [name for group in plan.groups if group.module == module.name for name in group.tensors]
        assert sorted(held) == sorted(tensor.name for tensor in module.tensors)
    for tier, usage in plan.usage.items():
        assert usage.total_bytes <= usage.capacity_bytes, tier
        assert usage.weights_bytes == sum(group.rest_bytes for group in plan.groups if group.tier == tier)
    ring = plan.ring_slots * plan.ring_slot_bytes
    assert plan.usage["ram"].ring_bytes == ring
    # What is on its way to a GPU passes the ring too.
    assert bool(ring) == any(group.buffer_bytes for group in plan.groups)
    assert all(group.buffer_bytes <= plan.ring_slot_bytes for group in plan.groups)
    if request.ram_budget is not None:
        assert plan.usage["ram"].total_bytes <= request.ram_budget
    assert plan.predicted.token_s >= plan.predicted.disk_bytes_per_token / here.disk.bytes_per_s
    read = sum(group.disk_bytes for group in plan.groups if group.residency != "cached")
    assert plan.predicted.first_token_s >= read / here.disk.bytes_per_s
    for group in plan.groups:
        assert group.device == ("ram" if group.tier == "disk" else group.tier)
        assert group.reason
        assert (group.tier == "disk") == (group.residency != "resident")
    return plan


@pytest.mark.parametrize("spec", [opt_30b(), bloom(), decoder(4), encoder_decoder(4)], ids=lambda spec: spec.id)
@pytest.mark.parametrize("ram", [20, 64, 512])
@pytest.mark.parametrize("gpus", [(), (24,), (24, 10)])
def test_every_plan_keeps_its_bounds(spec, ram, gpus):
    here = machine(ram * GIB, *(gpu(i, size * GIB) for i, size in enumerate(gpus)))
    request = make_request(spec, context=256)
    for plan in plan_all(spec, here, request):
        checked(spec, here, request, plan)


def test_what_fits_rests_and_nothing_is_streamed():
    plan = plan_one(opt_30b(), machine(128 * GIB), Request(context=128), "native")
    assert set(homes(plan)) == {"ram"}
    assert plan.ring_slots == 0
    assert plan.predicted.disk_bytes_per_token == 0
    assert plan.predicted.bottleneck == "memory"


def test_the_disk_decides_when_much_is_streamed():
    plan = plan_one(bloom(), machine(24 * GIB), Request(context=128), "native")
    assert plan.predicted.bottleneck == "disk"
    assert plan.predicted.token_s == pytest.approx(plan.predicted.disk_bytes_per_token / 3e9, rel=0.02)


def test_a_slow_matmul_is_told_from_a_slow_memory():
    here = machine(128 * GIB, ram_rate=50e9)
    slow = replace(here.ram, matmul_bytes_per_s={"float16": 10e9})
    here = replace(here, devices=(slow, here.disk))
    assert plan_one(opt_30b(), here, Request(context=128)).predicted.bottleneck == "cpu matmul"


def test_a_gpu_that_holds_all_computes_all():
    for spec in (decoder(4), encoder_decoder(4)):
        plan = plan_one(spec, TWO_GPUS, Request(context=128))
        used = {group.tier for group in plan.groups if "embed" not in group.module}
        assert len(used) == 1
        assert used <= {"gpu0", "gpu1"}
        assert plan.predicted.bottleneck.endswith(" memory")
        idle = ({"gpu0", "gpu1"} - used).pop()
        assert plan.usage[idle].total_bytes == 0


def test_unequal_and_occupied_gpus_are_filled_by_what_is_free():
    here = machine(64 * GIB, gpu(0, 24 * GIB, free=4 * GIB), gpu(1, 48 * GIB, rate=900e9))
    plan = plan_one(opt_30b(), here, make_request(opt_30b()))
    assert homes(plan)["gpu1"] > 5 * homes(plan)["gpu0"] > 0
    assert plan.usage["gpu0"].total_bytes <= 4 * GIB


def test_a_gpu_too_full_for_a_block_is_left_alone():
    here = machine(64 * GIB, gpu(0, 24 * GIB, free=GIB // 2))
    plan = plan_one(opt_30b(), here, make_request(opt_30b()))
    assert plan.usage["gpu0"].total_bytes == 0


def test_an_encoder_is_streamed_before_the_decoder_and_costs_nothing_per_token():
    spec = encoder_decoder(12, 1024, 32128)
    tight = plan_one(spec, machine(4 * GIB), make_request(spec, context=128, ram_budget=1650 * MIB))
    assert tight.fits
    out = {group.module.split(".")[0] for group in tight.groups if group.streamed}
    assert out == {"encoder"}
    assert tight.predicted.disk_bytes_per_token == 0
    assert any("prompt only" in group.reason for group in tight.groups)


def test_a_limit_of_nothing_in_ram_puts_everything_on_disk():
    spec = decoder(6, 256, 50000)
    plan = plan_one(spec, machine(4 * GIB), make_request(spec, weight_limits=(("ram", 0),)))
    assert set(homes(plan)) == {"disk"}
    assert plan.usage["ram"].weights_bytes == 0
    assert [group.module for group in plan.groups if group.residency == "cached"] == ["embed"]
    assert plan.ring_slots >= 2


def test_limits_of_a_gpu_hold():
    spec = decoder(6)
    slow = machine(64 * GIB, gpu(0, 24 * GIB), gpu(1, 24 * GIB), ram_rate=20e9)  # worth a hop or two
    plan = plan_one(spec, slow, make_request(spec, weight_limits=(("gpu0", 0), ("gpu1", 3 * MIB))))
    assert plan.usage["gpu0"].weights_bytes == 0
    assert 0 < plan.usage["gpu1"].weights_bytes <= 3 * MIB


def test_streamed_types_that_must_be_converted_cost_time_and_room():
    spec = decoder(6, 512)
    wide = replace(
        spec,
        modules=tuple(
            replace(m, tensors=tuple(replace(t, runtime="float32") for t in m.tensors)) for m in spec.modules
        ),
    )
    limits = (("ram", 0),)
    plain = plan_one(spec, machine(4 * GIB), make_request(spec, weight_limits=limits))
    converted = plan_one(wide, machine(4 * GIB), make_request(wide, weight_limits=limits))
    assert converted.ring_slot_bytes > 2 * plain.ring_slot_bytes
    assert converted.predicted.first_token_s > plain.predicted.first_token_s


def test_what_does_not_fit_says_by_how_much_and_what_would():
    spec = opt_30b()
    plan = plan_one(spec, machine(4 * GIB), make_request(spec, batch=4))
    assert not plan.fits
    assert plan.shortfall_bytes == plan.usage["ram"].total_bytes - plan.usage["ram"].capacity_bytes
    assert any("more RAM would fit" in remedy for remedy in plan.remedies)
    enough = 4 * GIB + int(plan.shortfall_bytes / 0.96) + MIB
    assert plan_one(spec, machine(enough), make_request(spec, batch=4)).fits
    assert not plan_one(spec, machine(enough - 64 * MIB), make_request(spec, batch=4)).fits


def test_remedies_name_the_batch_the_context_the_format_and_the_budget():
    spec = opt_30b()
    here = machine(32 * GIB)
    plan = plan_one(spec, here, make_request(spec, batch=64, context=512, ram_budget=9 * GIB))
    words = {remedy.split()[0] for remedy in plan.remedies}
    assert {"--batch", "--context"} <= words
    batch = next(int(r.split()[1]) for r in plan.remedies if r.startswith("--batch"))
    assert plan_one(spec, here, make_request(spec, batch=batch, context=512, ram_budget=9 * GIB)).fits
    assert not plan_one(spec, here, make_request(spec, batch=batch + 1, context=512, ram_budget=9 * GIB)).fits
    request = make_request(spec, context=64, ram_budget=2 * GIB)
    native, _, int4 = plan_all(spec, here, request)
    assert not native.fits
    budget = next(r for r in native.remedies if r.startswith("--ram"))
    mib = int(budget.split()[1].removesuffix("MiB"))
    assert plan_one(spec, here, replace(request, ram_budget=mib * MIB)).fits
    assert ("--weights int4 would fit" in native.remedies) == int4.fits


def test_a_format_that_would_fit_is_named():
    spec = opt_30b()
    request = make_request(spec, context=64, ram_budget=int(2.0 * GIB))
    native, _, int4 = plan_all(spec, machine(32 * GIB), request)
    assert (native.fits, int4.fits) == (False, True)
    assert "--weights int4 would fit" in native.remedies


def test_a_disk_that_cannot_hold_the_files_does_not_fit():
    spec = opt_30b()
    plan = plan_one(spec, machine(128 * GIB, disk=10**10), make_request(spec))
    assert not plan.fits
    assert plan.shortfall_bytes == spec.weight_bytes - 10**10
    assert any("more disk would fit" in remedy for remedy in plan.remedies)


def test_the_least_changed_of_the_fast_ones_is_chosen():
    native, int8, int4 = plan_all(opt_30b(), machine(128 * GIB), Request(context=64))

    def seconds(plan, token_s, fits=True):
        return replace(plan, fits=fits, predicted=replace(plan.predicted, token_s=token_s))

    assert choose((seconds(native, 1.4), seconds(int8, 1.2), seconds(int4, 1.0))) == 0
    assert choose((seconds(native, 1.6), seconds(int8, 1.4), seconds(int4, 1.0))) == 1
    assert choose((seconds(native, 9.0), seconds(int8, 9.0), seconds(int4, 1.0))) == 2
    assert choose((seconds(native, 0.1, fits=False), seconds(int8, 9.0), seconds(int4, 8.0))) == 1
    lacking = [replace(p, fits=False, shortfall_bytes=n) for p, n in ((native, 3), (int8, 1), (int4, 2))]
    assert choose(lacking) == 1


def test_a_model_without_a_head_is_planned_too():
    spec = decoder(4)
    bare = replace(spec, modules=spec.modules[:-1])
    for here in (machine(4 * GIB), TWO_GPUS):
        assert checked(bare, here, Request(), plan_one(bare, here, Request(context=64)))


def test_a_request_fits_the_model():
    spec = decoder(2, positions=1024)
    assert make_request(spec) == Request(context=1024, prompt=512)
    assert make_request(spec, context=100).prompt == 100
    assert make_request(decoder(2)).context == 2048
    with pytest.raises(UsageError, match="fewer positions"):
        make_request(spec, context=1025)
    for wrong in ({"context": 0}, {"batch": 0}, {"prompt": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            make_request(spec, **wrong)


def test_reasons_tell_rooms_from_rates():
    spec = decoder(12, 2048, 60000, tied=True)
    here = machine(4 * GIB, gpu(0, 2 * GIB, free=900 * MIB))
    plan = plan_one(spec, here, make_request(spec, context=128, ram_budget=1300 * MIB))
    texts = " ".join({group.reason for group in plan.groups})
    for word in ("672.0 GB/s", "tied to head", "small", "no GPU has room", "every sweep"):
        assert word in texts
    alone = plan_one(spec, machine(8 * GIB), make_request(spec, weight_limits=(("ram", 0),)))
    assert any("not even small ones" in group.reason for group in alone.groups)
    rows = plan_one(decoder(6, 512, 90000), machine(8 * GIB), Request(context=64))
    assert "room to keep it" in rows.groups[0].reason


def test_what_a_format_means_for_a_checkpoint_that_has_one():
    native, packed = decoder(), decoder()
    packing = Packing(4, 128, words=True, scale="bfloat16", zero_points=False)
    block = packed.modules[1]
    tensors = tuple(replace(tensor, packing=packing) if tensor.matmul else tensor for tensor in block.tensors)
    packed = replace(packed, modules=(packed.modules[0], replace(block, tensors=tensors), *packed.modules[2:]))
    assert [as_stored(native, weights) for weights in ("native", "int8", "int4")] == ["native", "int8", "int4"]
    assert [as_stored(packed, weights) for weights in ("native", "int4")] == ["native", "native"]
    with pytest.raises(UsageError, match="quantised already"):
        as_stored(packed, "int8")
