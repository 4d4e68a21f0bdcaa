"""Seconds by hand against seconds by formula."""

from dataclasses import replace

import pytest
from planner.shapes import GIB, block, decoder, encoder_decoder, gpu, machine

from outsize.machine import rates
from outsize.machine.machine import Device, Overheads
from outsize.planner import cost

RAM = Device("ram", "ram", GIB, GIB, 100e9)


def test_a_measured_matmul_rate_is_used_and_a_missing_one_is_a_share_of_the_memory_rate():
    measured = replace(RAM, matmul_bytes_per_s={"float16": 42e9})
    assert cost.decode_rate(measured, "float16") == 42e9
    assert cost.decode_rate(measured, "float32") == pytest.approx(90e9)
    assert cost.decode_rate(RAM, "float64") == pytest.approx(31e9)
    assert cost.decode_rate(gpu(0, GIB, rate=1e12), "float16") == pytest.approx(0.8e12)
    assert cost.decode_rate(gpu(0, GIB, rate=1e12), "int4") == pytest.approx(0.35e12)
    assert cost.decode_rate(gpu(0, GIB, rate=1e12), "fp8") == pytest.approx(0.04e12)  # torch multiplies it out
    int8 = replace(RAM, matmul_bytes_per_s={"int8": 50e9})
    assert cost.decode_rate(int8, "fp8") == pytest.approx(30e9)  # as a share of a format that was measured
    assert cost.decode_rate(replace(int8, matmul_bytes_per_s={"fp8": 42e9}), "fp8") == 42e9
    assert cost.decode_rate(gpu(0, GIB, rate=1e11, emulated=True), "float16") == pytest.approx(90e9)


def test_flops_fall_back_to_what_is_known():
    known = replace(RAM, flops={"bfloat16": 3e11, "float32": 1e11})
    assert cost.flop_rate(known, "bfloat16") == 3e11
    assert cost.flop_rate(known, "int4") == 3e11
    assert cost.flop_rate(known, "bf12") == pytest.approx(0.7 * 3e11)
    assert cost.flop_rate(replace(known, flops={"bf12": 5e11}), "bf12") == 5e11
    assert cost.flop_rate(known, "float16") == 1e11
    assert cost.flop_rate(RAM, "float16") == 4e11
    assert cost.flop_rate(replace(gpu(0, GIB, rate=1e12), flops={}), "float16") == 6e13


def test_a_tied_embedding_is_the_head_and_another_one_is_looked_up():
    tied, untied = decoder(1, tied=True), decoder(1)
    assert cost.is_head(tied, tied.modules[0])
    assert not cost.is_lookup(tied, tied.modules[0])
    assert cost.is_lookup(untied, untied.modules[0])
    assert cost.is_head(untied, untied.modules[-1])
    shared = encoder_decoder(1)
    with_head = replace(shared, modules=(*shared.modules, untied.modules[-1]))
    assert cost.is_lookup(with_head, with_head.modules[0])


def test_the_work_of_a_block_by_type():
    spec = decoder(1, 128, inner=128)
    work = cost.module_work(spec, spec.modules[1], "int4")
    packed = 6 * (128 * 64 + 128 * 2)
    assert {key: (read, elements) for key, read, elements in work.parts} == {
        "int4": (packed, 6 * 128 * 128),
        "bfloat16": (256, 0),
    }
    assert work.bytes == packed + 256
    assert cost.module_work(spec, spec.modules[0], "native").bytes == 0
    assert cost.module_work(spec, spec.modules[-1], "int4").parts == (("bfloat16", 256_000, 128_000),)


def test_a_block_is_bound_by_memory_for_one_token_and_by_multiplying_for_many():
    spec = decoder(1, 4096)
    work = cost.module_work(spec, spec.modules[1], "native")
    device = replace(RAM, matmul_bytes_per_s={"bfloat16": 50e9}, flops={"bfloat16": 1e12})
    one = cost.compute_s(work, device, 1, 0)
    assert one == pytest.approx(work.bytes / 50e9 + rates.BLOCK_OPERATIONS_S)
    many = cost.compute_s(work, device, 1000, 0)
    assert many == pytest.approx(2 * work.parts[0][2] * 1000 / 1e12 + rates.BLOCK_OPERATIONS_S)
    assert cost.compute_s(work, device, 1, 10**9) == pytest.approx(one + 3e9 / 100e9)


def test_few_and_many_rows_take_what_was_measured():
    one, unpacked, rest = 1e6 / 50e9, 1e6 / 5e9, 2e6 / 1e12
    device = replace(RAM, matmul_bytes_per_s={"int8": 50e9}, flops={"int8": 1e12})
    assert cost.matmul_s(device, "int8", 10**6, 10**6, 64) == pytest.approx(64 * rest)
    device = replace(device, few_rows_flops={"int8": 1e11}, unpack_per_s={"int8": 5e9})
    assert cost.matmul_s(device, "int8", 10**6, 10**6, 1) == pytest.approx(one)
    assert cost.matmul_s(device, "int8", 10**6, 10**6, 16) == pytest.approx(one + 15 * 10 * rest)
    assert cost.matmul_s(device, "int8", 10**6, 10**6, 64) == pytest.approx(unpacked + 64 * rest)


def test_small_operations_find_warm_caches_between_small_weights():
    over = Overheads(block_s=2e-3, small_block_s=1e-3)
    half = cost.Work((("bfloat16", cost.COLD_BYTES // 2, 0),), block=True)
    assert cost.block_s(half, over) == pytest.approx(1.5e-3)
    assert cost.block_s(replace(half, parts=(("int8", 10**9, 0),)), over) == pytest.approx(2e-3)
    assert cost.block_s(replace(half, parts=()), over) == pytest.approx(1e-3)


def test_activations_cross_the_memory_with_every_token_but_the_first():
    work = cost.Work((), block=True, activation_bytes=10**6)
    over = Overheads(block_s=0, small_block_s=0, activation_traffic=5)
    assert cost.compute_s(work, RAM, 1, 0, over) == 0
    assert cost.compute_s(work, RAM, 101, 0, over) == pytest.approx(5 * 1e8 / RAM.bytes_per_s)


def test_a_sweep_that_computes_gets_its_share_of_the_drive():
    disk = machine(GIB, disk_rate=2e9).disk
    assert cost.read_s(10**9, disk) == pytest.approx(0.5)
    assert cost.read_s(10**9, disk, Overheads(stream_share=0.8)) == pytest.approx(0.625)


def test_on_a_gpu_small_operations_overlap():
    spec = decoder(1, 64)
    work = cost.module_work(spec, spec.modules[1], "native")
    assert cost.compute_s(work, gpu(0, GIB), 1, 0) == rates.BLOCK_OPERATIONS_S
    head = cost.module_work(spec, spec.modules[-1], "native")
    assert cost.compute_s(head, gpu(0, GIB), 1, 0) < rates.BLOCK_OPERATIONS_S


def test_loading_takes_the_slower_of_drive_and_link():
    parts = machine(GIB, gpu(0, GIB, link=1e9), disk_rate=2e9)
    assert cost.read_s(10**9, parts.disk) == 0.5
    assert cost.load_s(10**9, parts.disk, parts.ram) == 0.5
    assert cost.load_s(10**9, parts.disk, parts.gpus[0]) == 1.0


def test_converting_reads_and_writes():
    assert cost.convert_s(10**9, RAM) == pytest.approx(0.02)


def test_hops_count_the_way_back():
    assert cost.hops_s(["ram", "ram"]) == 0
    assert cost.hops_s(["ram", "gpu0", "gpu0", "gpu1"]) == pytest.approx(3 * rates.HOP_S)


def test_blocks_are_made_for_every_type():
    assert block("b", 8, 8, dtype="float32").stored_bytes == 2 * block("b", 8, 8).stored_bytes
