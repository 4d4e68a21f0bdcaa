import pytest

from outsize.machine.machine import Device, Machine

RAM, DISK = Device("ram", "ram", 2, 1, 1.0), Device("disk", "disk", 2, 1, 1.0)
GPU = Device("gpu0", "gpu", 2, 1, 1.0, assumed=frozenset({"flops", "matmul_bytes_per_s:int8"}))


def test_devices_by_kind_and_name() -> None:
    machine = Machine("m", (GPU, RAM, DISK))
    assert (machine.gpus, machine.ram, machine.disk) == ((GPU,), RAM, DISK)
    assert machine.device("gpu0") is GPU
    with pytest.raises(KeyError):
        machine.device("gpu1")


def test_what_is_assumed() -> None:
    assert GPU.is_assumed("flops")
    assert GPU.is_assumed("flops", "float16")
    assert GPU.is_assumed("matmul_bytes_per_s", "int8")
    assert not GPU.is_assumed("matmul_bytes_per_s")
    assert not GPU.is_assumed("bytes_per_s")
