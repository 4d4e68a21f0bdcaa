"""Single tensors in the room that whole blocks leave."""

from dataclasses import replace

from planner.shapes import GIB, MIB, decoder, gpu, machine

from outsize.planner.fill import fill, room_left
from outsize.planner.planner import make_request, plan_one
from outsize.planner.problem import make_problem

SPEC = decoder(8, 1024, 1000)  # blocks of 24 MiB: q, k, v, o of 2 MiB, up and down of 8 MiB
BLOCK = 24 * MIB


def sizes(here, filling, device="ram"):
    """MiB of each tensor that rests apart, and the modules' indexes."""
    return sorted(
        (here.units[i].tensors[place].ram // MIB, i)
        for i, places in filling.items()
        for place, where in places.items()
        if where == device
    )


def problem(limit):
    request = make_request(SPEC, context=64, weight_limits=(("ram", limit),))
    return make_problem(SPEC, machine(1 << 33), request, "native")


def homes(streamed):
    blocks = [f"layers.{i}" for i in streamed]
    return ["disk" if m.name in blocks else "disk" if m.role == "embedding" else "ram" for m in SPEC.modules]


def test_the_room_left_is_filled_with_the_largest_that_fit_evenly_spread():
    placed = homes([1, 3, 5, 7])
    held = sum(u.resident_bytes for u in problem(0).units if placed[u.index] == "ram")
    here = problem(held + 19 * MIB)
    assert room_left(here, placed, 2) == {"ram": 19 * MIB}
    found = sizes(here, fill(here, placed, 2))
    assert [size for size, _ in found] == [2, 8, 8]
    assert found[2][1] - found[1][1] >= 4  # modules: 1 and 3 of the four streamed blocks


def test_nothing_stays_where_nothing_is_streamed_or_nothing_fits():
    assert not sizes(problem(0), fill(problem(1 << 40), homes([]), 2))
    placed = homes(range(8))
    held = sum(u.resident_bytes for u in problem(0).units if placed[u.index] == "ram")
    assert not fill(problem(held + 2 * MIB - 1), placed, 2)
    assert not fill(problem(0), placed, 2)


def test_a_gpu_too_small_for_a_block_takes_layers_of_blocks_that_are_streamed_then_of_others():
    request = make_request(SPEC, context=64, weight_limits=(("gpu0", 20 * MIB),))
    here = make_problem(SPEC, machine(8 * GIB, gpu(0, GIB, emulated=True)), request, "native")
    found = sizes(here, fill(here, homes([2]), 2), "gpu0")
    assert [size for size, _ in found] == [2, 2, 8, 8]
    assert {index for _, index in found} == {3}
    found = sizes(here, fill(here, homes([]), 2), "gpu0")
    assert [size for size, _ in found] == [8, 8]  # small ones are not worth their hops
    tight = replace(here, ram=replace(here.ram, room=200 * MIB))
    assert not sizes(tight, fill(tight, homes([]), 2), "gpu0")  # no room for the ring through which they go
    slow = replace(here, machine=machine(8 * GIB, gpu(0, GIB, emulated=True, rate=40e9)))
    assert not sizes(slow, fill(slow, homes([]), 2), "gpu0")  # RAM has 50 GB/s


def test_something_of_a_block_stays_where_the_block_is():
    spec = replace(SPEC, modules=tuple(replace(m, tensors=m.tensors[:2]) for m in SPEC.modules))
    here = make_problem(spec, machine(8 * GIB, gpu(0, GIB, emulated=True)), make_request(spec, context=64), "native")
    filling = fill(here, homes(range(8)), 2)
    assert all(len(places) == 1 for places in filling.values())


def test_a_plan_counts_what_stays():
    request = make_request(SPEC, context=64, weight_limits=(("ram", 3 * BLOCK + 12 * MIB),))
    plan = plan_one(SPEC, machine(1 << 33), request)
    kept = [group for group in plan.groups if "fills the room in RAM" in group.reason]
    streamed = [group for group in plan.groups if group.streamed]
    assert 0 < sum(group.disk_bytes for group in kept) < BLOCK
    assert {group.module for group in kept} <= {group.module for group in streamed}
    assert plan.predicted.disk_bytes_per_token == sum(group.disk_bytes for group in streamed)
    assert plan.usage["ram"].weights_bytes <= 3 * BLOCK + 12 * MIB
