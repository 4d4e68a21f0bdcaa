"""Single tensors of streamed blocks in the room that no whole block can use."""

from planner.shapes import MIB, decoder, machine

from outsize.planner.keeping import keep_tensors, room_left, without
from outsize.planner.planner import make_request, plan_one
from outsize.planner.problem import make_problem

SPEC = decoder(8, 1024, 1000)  # blocks of 24 MiB: q, k, v, o of 2 MiB, up and down of 8 MiB
BLOCK = 24 * MIB


def total(kept):
    return sum(kept.ram_bytes(i) for i in kept.tensors)


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
    assert room_left(here, placed, 2) == 19 * MIB
    kept = keep_tensors(here, placed, 2)
    assert total(kept) == 18 * MIB
    assert sorted(kept.ram_bytes(i) // MIB for i in kept.tensors) == [2, 8, 8]
    large = [i for i, several in kept.tensors.items() if any(one.ram_bytes == 8 * MIB for one in several)]
    assert len(large) == 2
    assert max(large) - min(large) >= 4  # modules: 1 and 3 of the four streamed blocks
    less = without(here, kept)
    assert sum(here.rest_bytes) - sum(less.rest_bytes) == 18 * MIB


def test_nothing_stays_where_nothing_is_streamed_or_nothing_fits():
    assert total(keep_tensors(problem(1 << 40), homes([]), 2)) == 0
    placed = homes(range(8))
    held = sum(u.resident_bytes for u in problem(0).units if placed[u.index] == "ram")
    assert total(keep_tensors(problem(held + 2 * MIB - 1), placed, 2)) == 0
    assert total(keep_tensors(problem(0), placed, 2)) == 0


def test_a_plan_counts_what_stays():
    request = make_request(SPEC, context=64, weight_limits=(("ram", 3 * BLOCK + 12 * MIB),))
    plan = plan_one(SPEC, machine(1 << 33), request)
    kept = sum(one.file_bytes for item in plan.items for one in item.kept)
    assert 0 < kept < BLOCK
    streamed = [item for item in plan.items if item.streamed]
    assert plan.predicted.disk_bytes_per_token == sum(item.bytes for item in streamed) - kept
    assert all(one.name.startswith(item.module) for item in plan.items for one in item.kept)
    assert any("stay in RAM" in item.reason for item in streamed)
    assert plan.usage["ram"].weights_bytes <= 3 * BLOCK + 12 * MIB
