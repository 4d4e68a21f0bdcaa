from __future__ import annotations

from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, decoder, encoder_decoder, gpu, machine

from outsize.models.spec import WorkspaceSpec
from outsize.planner import footprint
from outsize.planner.batches import (
    LOGITS_BYTES,
    MemoryUse,
    Room,
    Shape,
    cache_bytes,
    kept_rows_bytes,
    logit_rows,
    memory_use_of,
    pack,
    peak_bytes,
    resting_bytes,
    room_of,
    workspace_bytes,
)
from outsize.planner.plan import Request
from outsize.planner.planner import plan_one

SPEC = decoder(blocks=6, hidden=256, vocab=1000)


def plan_of(spec, *, weights=None, gpus=(), **request):
    asked = Request(context=128, prompt=64, weight_limits=(("ram", weights),) if weights is not None else (), **request)
    return plan_one(spec, machine(8 * GIB, *(gpu(i, size, emulated=True) for i, size in enumerate(gpus))), asked)


@pytest.mark.parametrize("weights", [0, 2 * MIB])  # with rows of an embedding that are kept, and without
def test_room_is_what_weights_ring_and_process_leave(weights):
    plan = plan_of(SPEC, weights=weights)
    usage = plan.usage["ram"]
    rest = usage.weights_bytes + usage.ring_bytes + footprint.ram_overhead_bytes(SPEC, 0)
    ((tier, room),) = room_of(SPEC, plan).tiers
    rest += int(1.25 * kept_rows_bytes(plan))
    slack = sum(footprint.slack_bytes(module, "native") for module in SPEC.modules)
    assert tier == "ram"
    assert room == pytest.approx(usage.capacity_bytes - rest - slack, abs=1)


def test_rows_of_an_embedding_on_disk_are_kept():
    assert kept_rows_bytes(plan_of(SPEC, weights=0)) == SPEC.modules[0].runtime_bytes
    assert kept_rows_bytes(plan_of(SPEC)) == 0


def test_rows_that_are_kept_leave_room():
    large = decoder(blocks=6, hidden=256, vocab=200_000)  # an embedding of 98 MiB
    plan = plan_of(large, weights=0)
    assert kept_rows_bytes(plan) == 64 * MIB
    tight = plan_of(large, weights=0, ram_budget=plan.usage["ram"].total_bytes + 40 * MIB)
    usage = tight.usage["ram"]
    assert kept_rows_bytes(tight) == (40 * MIB + usage.kv_bytes + usage.workspace_bytes) // 8


def test_every_tier_that_computes_has_its_room():
    plan = plan_of(SPEC, weights=0, gpus=(6 * MIB,))
    assert dict(room_of(SPEC, plan).tiers).keys() == {group.device for group in plan.groups}
    assert any(tier == "gpu0" for tier, _ in room_of(SPEC, plan).tiers)


def test_buffers_and_what_is_unpacked_take_room_on_every_tier():
    plan = plan_of(SPEC, weights=0, gpus=(6 * MIB,))
    before = dict(room_of(SPEC, plan).tiers)
    usage = plan.usage["gpu0"]
    rest = usage.weights_bytes + usage.ring_bytes + usage.overhead_bytes
    assert before["gpu0"] == usage.capacity_bytes - rest - SPEC.buffer_bytes
    more = dict(room_of(replace(SPEC, buffer_bytes=SPEC.buffer_bytes + 5), plan).tiers)
    unpacked = footprint.unpacked_bytes(SPEC, "int4")
    packed = dict(room_of(SPEC, replace(plan, weights="int4")).tiers)
    assert unpacked
    for tier, size in before.items():
        assert more[tier] == size - 5
        assert packed[tier] == size - unpacked


def test_one_workspace_and_the_sum_of_what_rests():
    room = Room((("ram", 100), ("gpu0", 50)))
    assert room.fits([MemoryUse((("ram", 30), ("gpu0", 10)), 20)] * 2)
    several = [MemoryUse((("ram", 30), ("gpu0", 10)), 5), MemoryUse((("ram", 30), ("gpu0", 10)), 30)]
    assert room.fits(several)  # to the byte
    assert not room.fits([*several, MemoryUse((("ram", 0), ("gpu0", 1)), 0)])
    assert not room.fits([MemoryUse((("ram", 30), ("gpu0", 10)), 20)] * 3)
    assert not room.fits([MemoryUse((("ram", 0), ("gpu0", 20)), 31)])
    assert room.fits([])


def test_peak_and_rest_as_measured():
    tokens = 50
    assert peak_bytes(SPEC, tokens) == SPEC.workspace.bytes_for(1, tokens)
    assert resting_bytes(SPEC, tokens) == peak_bytes(SPEC, tokens)
    measured = replace(SPEC, workspace=WorkspaceSpec(1, 2, 0.0), resting=WorkspaceSpec(3, 4, 0.0))
    assert peak_bytes(measured, tokens) == 101
    assert resting_bytes(measured, tokens) == 203


def test_caches_of_those_that_keep_one():
    plan = plan_of(SPEC, weights=0)
    per_token = SPEC.kv_bytes_per_token
    assert cache_bytes(SPEC, plan, Shape(3, 10), "ram") == 0
    assert cache_bytes(SPEC, plan, Shape(3, 10, new_tokens=5, cached=True), "ram") == 3 * 15 * per_token
    assert cache_bytes(SPEC, plan, Shape(3, 10, cached=True), "gpu0") == 0
    # every block is streamed: what is transient is never more than one block's
    assert cache_bytes(SPEC, plan, Shape(3, 10, cached=True, transient=True), "ram") == 3 * 10 * per_token // 6
    resident = plan_of(SPEC)
    assert cache_bytes(SPEC, resident, Shape(3, 10, cached=True, transient=True), "ram") == 3 * 10 * per_token


def test_a_decoder_caches_what_it_makes_and_the_encoders_tokens():
    spec = encoder_decoder(blocks=4)
    plan = plan_of(spec)
    own = sum(b.cache.per_token for b in spec.blocks)
    cross = sum(b.cache.cross_per_token for b in spec.blocks)
    assert cache_bytes(spec, plan, Shape(2, 10, new_tokens=5, cached=True), "ram") == 2 * (6 * own + 10 * cross)


def test_workspace_is_a_pass_joined_caches_and_logits():
    plain = workspace_bytes(SPEC, Shape(2, 10, scored=4))
    logits = 4 * 12 * SPEC.vocab_size
    assert plain == int((2 * peak_bytes(SPEC, 10) + logits) * 1.5)
    behind = workspace_bytes(SPEC, Shape(2, 10, past=20, scored=4))
    assert behind == int((2 * (peak_bytes(SPEC, 10) + 30 * SPEC.blocks[0].cache.per_token) + logits) * 1.5)
    new = workspace_bytes(SPEC, Shape(2, 10, new_tokens=7, scored=4, cached=True))  # the last token of each row
    of_two = 2 * 12 * SPEC.vocab_size
    assert new == int((2 * (peak_bytes(SPEC, 10) + 17 * SPEC.blocks[0].cache.per_token) + of_two) * 1.5)
    many = workspace_bytes(SPEC, Shape(2, 10, scored=10**9))
    assert many <= int((2 * peak_bytes(SPEC, 10) + LOGITS_BYTES) * 1.5)
    assert logit_rows(SPEC) == LOGITS_BYTES // (12 * SPEC.vocab_size)


def test_a_burden_lies_on_every_tier_that_computes():
    plan = plan_of(SPEC, weights=0, gpus=(6 * MIB,))
    memory_use = memory_use_of(SPEC, plan, Shape(2, 10, new_tokens=2, cached=True))
    hidden = 2 * resting_bytes(SPEC, 10)
    assert sum(size - hidden for _, size in memory_use.resting) == 2 * 12 * SPEC.kv_bytes_per_token
    assert memory_use.workspace == workspace_bytes(SPEC, Shape(2, 10, new_tokens=2, cached=True))


def test_packs_have_little_padding_and_are_no_larger_than_asked():
    lengths = [10, 100, 9, 95, 10, 60, 90, 1]
    packs = pack(lengths, lambda rows, tokens: True, most_tokens=300)
    assert sorted(i for several in packs for i in several) == list(range(8))
    assert packs == [[1, 3, 6], [5], [0, 4, 2], [7]]
    assert pack(lengths, lambda rows, tokens: rows <= 2, most_tokens=300)[0] == [1, 3]
    assert pack([5, 5, 4], lambda rows, tokens: True, alike=True) == [[0, 1], [2]]
    assert pack([5000, 5000], lambda rows, tokens: True) == [[0], [1]]
    assert pack([], lambda rows, tokens: True) == []
