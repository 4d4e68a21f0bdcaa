from __future__ import annotations

import pytest

from outsize.errors import UsageError
from outsize.machine.describe import parse_machine
from outsize.machine.rates import ALL_RATES, UNKNOWN_GPU
from outsize.machine.what_if import changed
from outsize.sizes import GIB

SERVER = parse_machine("gpu=24GiB:20GiB,ram=64GiB:60GiB@50GB/s,disk=2TiB@3GB/s")
TITANS = parse_machine("2x-titan-rtx")


def test_sizes_are_set_or_added_and_what_is_in_use_stays_in_use() -> None:
    for text in ("ram=128GiB", "ram=+64GiB", " ram = 128GiB".replace(" = ", "=")):
        ram = changed(SERVER, text).ram
        assert (ram.capacity_bytes, ram.free_bytes, ram.bytes_per_s) == (128 * GIB, 124 * GIB, 50e9)
    assert changed(SERVER, "ram=2GiB").ram.free_bytes == 0
    gpu = changed(SERVER, "gpu0=48GiB").gpus[0]
    assert (gpu.capacity_bytes, gpu.free_bytes) == (48 * GIB, 44 * GIB)


def test_matmuls_of_one_row_follow_the_memory_and_rates_become_assumed() -> None:
    ram = changed(SERVER, "ram=+0GiB@100GB/s").ram
    assert ram.bytes_per_s == 100e9
    assert ram.matmul_bytes_per_s == {key: 2 * rate for key, rate in SERVER.ram.matmul_bytes_per_s.items()}
    assert ram.flops == SERVER.ram.flops
    assert {"bytes_per_s", "matmul_bytes_per_s"} <= ram.assumed
    assert changed(SERVER, "disk@7GB/s").disk.bytes_per_s == 7e9


def test_one_more_gpu_is_like_the_last_or_a_slow_one() -> None:
    third = changed(TITANS, "gpu=+48GiB").gpus[2]
    assert (third.name, third.capacity_bytes, third.free_bytes) == ("gpu2", 48 * GIB, 48 * GIB)
    assert third.bytes_per_s == TITANS.gpus[1].bytes_per_s
    assert third.assumed == ALL_RATES
    first = changed(parse_machine("ram=8GiB"), "gpu=+24GiB")
    assert [device.name for device in first.devices] == ["gpu0", "ram", "disk"]
    assert first.gpus[0].bytes_per_s == UNKNOWN_GPU.memory
    assert changed(first, "gpu=+24GiB@1TB/s").gpus[1].bytes_per_s == 1e12


def test_several_changes_and_what_they_are_called() -> None:
    machine = changed(TITANS, "ram=128GiB,gpu=+24GiB,disk@7GB/s")
    assert machine.name == "2x-titan-rtx with ram=128GiB,gpu=+24GiB,disk@7GB/s"
    assert len(machine.gpus) == 3
    assert machine.ram.capacity_bytes == 128 * GIB


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "does not understand ''"),
        ("ram", "does not understand 'ram'"),
        ("tape=3GiB", "does not understand 'tape=3GiB'"),
        ("ram=much", "not a size"),
        ("disk@fast", "not a rate"),
        ("gpu=24GiB", "gpu=.SIZE for one more"),
        ("gpu5=24GiB", "there is no gpu5; have gpu0, ram, disk"),
    ],
)
def test_what_makes_no_sense(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        changed(SERVER, text)
