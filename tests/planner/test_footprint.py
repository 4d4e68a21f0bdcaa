"""Bytes by hand against bytes by formula."""

from dataclasses import replace

import pytest
from planner.shapes import GIB, MIB, block, bloom, decoder, gpu, machine, weight

from outsize.models.formats import Packing
from outsize.models.spec import CacheSpec, ModuleSpec
from outsize.planner import footprint
from outsize.planner.plan import Request


def of(*tensors, role="block"):
    return ModuleSpec("b", role, "", tensors, CacheSpec())


def test_packed_weights_are_words_and_scales_and_on_disk_a_shape():
    square = of(weight("w", 256, 256))
    assert footprint.rest_bytes(square, "int8") == 256 * 256 + 256 * 2 * 2
    assert footprint.rest_bytes(square, "int4") == 256 * 128 + 256 * 2 * 2
    assert footprint.file_bytes(square, "int4") == 256 * 128 + 256 * 2 * 2 + 16
    assert footprint.file_bytes(square, "native") == footprint.rest_bytes(square, "native") == 256 * 256 * 2
    thin = of(weight("w", 3, 160, dtype="float32"))  # groups of 32, for 128 and 64 do not divide it
    assert footprint.rest_bytes(thin, "int8") == 3 * (160 + 5 * 4)
    odd = of(weight("w", 3, 130))  # nothing divides it
    assert footprint.rest_bytes(odd, "int4") == 3 * 130 * 2


def test_the_scales_are_of_the_type_that_the_weight_is_used_in():
    wide = of(weight("w", 256, 256, dtype="float32", runtime="bfloat16"))
    assert footprint.rest_bytes(wide, "int4") == 256 * 128 + 256 * 2 * 4
    assert footprint.resident_bytes(wide, "int4") == 256 * 128 + 256 * 2 * 2
    assert footprint.converted_bytes(wide, "int4") == 256 * 2 * 2


def test_what_the_checkpoint_has_packed_is_packed_as_it_has_it():
    channel = Packing(8, 100, words=False, scale="bfloat16", zero_points=True)
    tensor = replace(weight("w", 10, 100), packing=channel)
    for role in ("block", "head"):  # whoever made it quantised more than outsize would
        module = of(tensor, role=role)
        assert footprint.packing_of(module, tensor, "native") == channel
        assert footprint.rest_bytes(module, "native") == footprint.file_bytes(module, "native") == 1000 + 10 * 2 + 10
        assert footprint.resident_bytes(module, "native") == tensor.stored_bytes == 1030
        assert footprint.extent_count(module, "native") == 3


def test_unpacking_takes_a_tile_or_all_of_a_small_weight():
    small, large = decoder(1, 128), decoder(1, 4096)
    assert footprint.unpacked_bytes(small, "native") == 0
    assert footprint.unpacked_bytes(small, "int8") == 4 * 128 * 128 * footprint.UNPACKED_BYTES_PER_ELEMENT
    assert footprint.unpacked_bytes(large, "int4") == footprint.UNPACKED_BYTES


def test_only_matmuls_inside_blocks_are_quantised():
    module = block("b", 128, 128)
    norm = 128 * 2
    assert footprint.rest_bytes(module, "int4") == 6 * (128 * 64 + 128 * 2) + norm
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


def test_a_strided_view_is_read_from_its_first_element_to_its_last_and_laid_out():
    view = replace(weight("w", 100, 100), span=30_000)
    module = of(view)
    assert footprint.rest_bytes(module, "native") == 30_000
    assert footprint.converted_bytes(module, "native") == footprint.resident_bytes(module, "native") == 20_000
    assert footprint.span_of(view, "int8") == 0  # a converted copy has none


def test_slots_have_room_for_the_ends_of_pages():
    module = block("b", 128, 128)  # seven tensors, six of them packed into two
    assert footprint.slack_bytes(module, "native") == 7 * 2 * 4096
    assert footprint.slack_bytes(module, "int8") == 13 * 2 * 4096


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
    assert footprint.ram_overhead_bytes(spec, 100) == own
    assert footprint.ram_overhead_bytes(spec, 100, triton=True) == own + footprint.TRITON_BYTES
    assert footprint.staging_bytes(gpu(0, GIB, emulated=True)) == 0
    assert footprint.staging_bytes(gpu(0, GIB)) == footprint.STAGING_BYTES
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
