"""More of anything never makes a plan slower."""

from dataclasses import replace
from random import Random

import pytest
from planner.shapes import GIB, MIB, decoder, gpu, machine, mixture

from outsize.planner.footprint import PROCESS_BYTES
from outsize.planner.planner import make_request, plan_one

EXACT = 1.005  # reading and computing are a little out of step, which more or fewer streamed blocks may even out


def instance(random):
    """A model, a machine with up to three GPUs of all kinds, and a request that leaves too little of everything."""
    blocks = random.choice((6, 12, 24))
    spec = decoder(blocks, 1024, random.choice((1000, 30000)), tied=random.random() < 0.5)
    share = spec.weight_bytes
    gpus = [
        gpu(
            index, 2 * GIB, free=int(random.uniform(0.02, 0.5) * share) + 40 * MIB,
            rate=random.choice((30e9, 100e9, 400e9)), emulated=random.random() < 0.5,
        )
        for index in range(random.choice((0, 1, 2, 3)))
    ]  # fmt: skip
    here = machine(8 * GIB, *gpus, ram_rate=random.choice((20e9, 50e9)), disk_rate=random.choice((1e9, 3e9, 10e9)))
    budget = PROCESS_BYTES + int(random.uniform(0.2, 1.1) * share) + 60 * MIB
    limits = (("ram", int(random.uniform(0.1, 1.0) * share)),) if random.random() < 0.5 else ()
    return spec, here, make_request(spec, context=64, ram_budget=budget, weight_limits=limits)


def mixture_instance(random):
    """The same with a mixture of experts, whose placements differ in whole layers: there are fewer of them."""
    spec = mixture(random.choice((4, 8, 12)), *random.choice(((8, 2), (32, 4), (64, 8))))
    share = spec.weight_bytes
    gpus = [
        gpu(
            index, 16 * GIB, free=int(random.uniform(0.02, 0.6) * share) + 40 * MIB,
            rate=random.choice((30e9, 100e9, 400e9)), emulated=random.random() < 0.5,
        )
        for index in range(random.choice((0, 1, 2)))
    ]  # fmt: skip
    here = machine(64 * GIB, *gpus, ram_rate=random.choice((20e9, 50e9)), disk_rate=random.choice((1e9, 3e9, 10e9)))
    budget = PROCESS_BYTES + int(random.uniform(0.1, 1.1) * share) + 100 * MIB
    limits = (("ram", int(random.uniform(0.1, 1.0) * share)),) if random.random() < 0.4 else ()
    batch = random.choice((1, 1, 4))
    return spec, here, make_request(spec, context=64, ram_budget=budget, weight_limits=limits, batch=batch)


def better(random, here, request):
    """The same with one thing more, and its name."""
    ways = ["ram", "disk rate", "ram rate", "one GPU more"]
    ways += ["limit"] if request.weight_limits else []
    ways += ["room on a GPU", "a faster GPU"] if here.gpus else []
    way = random.choice(ways)
    factor = random.uniform(1.05, 2.0)
    devices = {device.name: device for device in here.devices}
    if way == "ram":
        request = replace(request, ram_budget=int(request.ram_budget * factor))
    elif way == "limit":
        request = replace(request, weight_limits=(("ram", int(request.weight_limits[0][1] * factor)),))
    elif way == "one GPU more":
        index = len(here.gpus)
        more = gpu(index, 2 * GIB, free=random.choice((60, 200)) * MIB, rate=random.choice((30e9, 100e9, 400e9)))
        devices = {more.name: more, **devices}
        here = replace(here, devices=(*here.gpus, more, here.ram, here.disk))
        return way, here, request
    else:
        name = {"disk rate": "disk", "ram rate": "ram"}.get(way, "gpu0")
        device = devices[name]
        if way == "room on a GPU":
            devices[name] = replace(device, free_bytes=int(device.free_bytes * factor))
        else:
            devices[name] = replace(device, bytes_per_s=device.bytes_per_s * factor)
        here = replace(here, devices=tuple(devices.values()))
    return way, here, request


@pytest.mark.parametrize("make", [instance, mixture_instance])
@pytest.mark.parametrize("seed", range(30))
def test_more_of_anything_is_never_slower(seed, make):
    random = Random(seed)
    spec, here, request = make(random)
    plan = plan_one(spec, here, request)
    for _ in range(4):
        way, there, wider = better(random, here, request)
        other = plan_one(spec, there, wider)
        assert other.fits or not plan.fits, way
        if plan.fits:
            assert other.predicted.token_s <= EXACT * plan.predicted.token_s, way


@pytest.mark.parametrize("seed", [*range(20), 210, 248, 406, 419, 458, 471])
def test_a_mixture_never_takes_more_than_there_is(seed):
    """What of blocks in RAM computes on a GPU passes through a ring, which leaves less to the cache of experts."""
    spec, here, request = mixture_instance(Random(seed))
    plan = plan_one(spec, here, request)
    assert plan.fits
    for tier, usage in plan.usage.items():
        assert usage.total_bytes <= usage.capacity_bytes, tier
    assert plan.expert_slots <= sum(group.experts for group in plan.groups)


def test_a_gpu_takes_a_layers_experts_where_the_rest_would_leave_it_no_room():
    """Blocks without their experts first, as in a dense model, would leave a part of the card empty."""
    spec = mixture(12, 64, 8)
    layer = next(module.runtime_bytes for module in spec.modules if module.experts)
    card = gpu(0, 16 * GIB, free=layer + 600 * MIB, rate=100e9)
    here = machine(64 * GIB, card, ram_rate=50e9, disk_rate=1e9)
    plan = plan_one(spec, here, make_request(spec, context=64, ram_budget=PROCESS_BYTES + spec.weight_bytes // 2))
    assert "gpu0" in {group.tier for group in plan.groups if group.experts}


def test_a_gpu_that_computes_slower_than_ram_does_no_harm():
    spec = decoder(64, 1024, 1000, dtype="float16")
    without = machine(4 * GIB, ram_rate=90e9)
    request = make_request(spec, context=64)
    slow = machine(4 * GIB, gpu(0, GIB, rate=20e9), ram_rate=90e9)
    assert plan_one(spec, slow, request).predicted.token_s <= plan_one(spec, without, request).predicted.token_s
