"""Bytes by hand against bytes by formula."""

import pytest
from planning.shapes import GIB, MIB, block, bloom, decoder, gpu, machine, weight

from outsize.facts.model import CacheSpec, ModuleSpec
from outsize.planning import footprint
from outsize.planning.plan import Request


def test_packed_weights_are_words_scales_and_a_shape():
    square = weight("w", 256, 256)
    assert footprint.packed_bytes(square, "int8") == 256 * 256 + 256 * 2 * 2 + 16
    assert footprint.packed_bytes(square, "int4") == 256 * 128 + 256 * 2 * 2 + 16
    odd = weight("w", 3, 130, dtype="float32")  # 130 inputs: 33 words of 4 or 17 of 8, and two groups
    assert footprint.packed_bytes(odd, "int8") == 3 * (33 * 4 + 2 * 4) + 16
    assert footprint.packed_bytes(odd, "int4") == 3 * (17 * 4 + 2 * 4) + 16
    fused = weight("experts", 4, 256, 256)
    assert footprint.packed_bytes(fused, "int4") == 4 * (256 * 128 + 256 * 2 * 2) + 16


def test_only_matmuls_inside_blocks_are_quantised():
    module = block("b", 128, 128)
    norm = 128 * 2
    assert footprint.rest_bytes(module, "int4") == 6 * (128 * 64 + 128 * 2 + 16) + norm
    head = ModuleSpec("head", "head", "", (weight("head.weight", 10, 128),), CacheSpec())
    assert footprint.rest_bytes(head, "int4") == footprint.rest_bytes(head, "native") == 10 * 128 * 2


def test_the_native_footprint_is_the_checkpoint_to_the_byte():
    spec = bloom()
    assert sum(footprint.rest_bytes(m, "native") for m in spec.modules) == spec.weight_bytes
    assert sum(footprint.resident_bytes(m, "native") for m in spec.modules) == spec.weight_bytes


def test_a_runtime_type_of_its_own_counts_in_memory_and_in_the_slot():
    wide = ModuleSpec("b", "block", "", (weight("b.w", 100, 100, dtype="float16", runtime="float32"),), CacheSpec())
    assert footprint.rest_bytes(wide, "native") == 20_000
    assert footprint.resident_bytes(wide, "native") == 40_000
    assert footprint.slot_bytes(wide, "native") == 20_000 + 2 * 4096 + 40_000


def test_slots_have_room_for_the_ends_of_pages():
    module = block("b", 128, 128)  # seven tensors, six of them packed into three
    assert footprint.slack_bytes(module, "native") == 7 * 2 * 4096
    assert footprint.slack_bytes(module, "int8") == 19 * 2 * 4096


def test_the_cache_grows_with_batch_and_context():
    cache = CacheSpec(per_token=10, window=100, cross_per_token=2, fixed=5)
    assert footprint.kv_bytes(cache, Request(context=50, batch=3)) == 3 * (5 + 500 + 100)
    assert footprint.kv_bytes(cache, Request(context=200, batch=1)) == 5 + 1000 + 400


def test_the_workspace_has_the_prompt_the_buffers_and_one_copy_of_a_cache():
    spec = decoder(2, 256)
    request = Request(context=100, batch=2, prompt=1000)  # no prompt is longer than the context
    assert footprint.workspace_bytes(spec, request) == 2 * (MIB // 64 + 20 * 256 * 100) + 2 * 100 * 2 * 256 * 2


def test_the_process_has_staging_buffers_for_real_gpus_only():
    spec = decoder(vocab=1000)
    own = footprint.PROCESS_BYTES + 1000 * footprint.TOKENIZER_BYTES + 50
    assert footprint.ram_overhead_bytes(spec, machine(GIB), 100) == own
    assert footprint.ram_overhead_bytes(spec, machine(GIB, gpu(0, GIB, emulated=True)), 100) == own
    assert footprint.ram_overhead_bytes(spec, machine(GIB, gpu(0, GIB)), 100) > own
    assert footprint.gpu_overhead_bytes(gpu(0, GIB)) == footprint.CUDA_CONTEXT_BYTES
    assert footprint.gpu_overhead_bytes(gpu(0, GIB, emulated=True)) == 0


@pytest.mark.parametrize(("budget", "bytes_"), [(None, int(8 * GIB * 0.96)), (GIB, GIB), (100 * GIB, 8 * GIB)])
def test_a_budget_replaces_the_margin_and_never_exceeds_what_is_free(budget, bytes_):
    assert footprint.ram_capacity_bytes(machine(16 * GIB, free=8 * GIB), Request(ram_budget=budget)) == bytes_


def test_gpus_keep_a_margin_unless_they_are_emulated_or_budgeted():
    both = machine(GIB, gpu(0, 4 * GIB, free=2 * GIB), gpu(1, GIB, emulated=True))
    assert footprint.gpu_capacity_bytes(both, 0, Request()) == int(2 * GIB * 0.97)
    assert footprint.gpu_capacity_bytes(both, 1, Request()) == GIB
    assert footprint.gpu_capacity_bytes(both, 0, Request(gpu_budgets=(GIB,))) == GIB
    assert footprint.gpu_capacity_bytes(both, 0, Request(gpu_budgets=(9 * GIB,))) == 2 * GIB


def test_weights_are_unlimited_where_nobody_limits_them():
    request = Request(weight_limits=(("ram", 7),))
    assert footprint.weight_limit_bytes(request, "ram") == 7
    assert footprint.weight_limit_bytes(request, "gpu0") == footprint.no_limit()
