"""More of anything never makes a plan slower."""

from dataclasses import replace
from random import Random

import pytest
from planner.shapes import GIB, MIB, decoder, gpu, machine

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


@pytest.mark.parametrize("seed", range(30))
def test_more_of_anything_is_never_slower(seed):
    random = Random(seed)
    spec, here, request = instance(random)
    plan = plan_one(spec, here, request)
    for _ in range(4):
        way, there, wider = better(random, here, request)
        other = plan_one(spec, there, wider)
        assert other.fits or not plan.fits, way
        if plan.fits:
            assert other.predicted.token_s <= EXACT * plan.predicted.token_s, way


def test_a_gpu_that_computes_slower_than_ram_does_no_harm():
    spec = decoder(64, 1024, 1000, dtype="float16")
    without = machine(4 * GIB, ram_rate=90e9)
    request = make_request(spec, context=64)
    slow = machine(4 * GIB, gpu(0, GIB, rate=20e9), ram_rate=90e9)
    assert plan_one(spec, slow, request).predicted.token_s <= plan_one(spec, without, request).predicted.token_s
