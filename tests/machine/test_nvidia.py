import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from machine.fake_host import GIB, fake_host
from machine.fake_nvml import FakeNvml, NVMLError, card

from outsize.machine.nvidia import load_nvml, read_gpus


def uuids(nvml: FakeNvml, visible: str | None) -> list[str]:
    return [gpu.uuid for gpu in read_gpus(nvml, visible)]


def test_a_known_gpu_has_its_sheet_and_what_others_leave_free() -> None:
    (gpu,) = read_gpus(FakeNvml(card("GPU-aa", b"NVIDIA TITAN RTX", free=10 * GIB)), None)
    assert (gpu.name, gpu.kind, gpu.label, gpu.uuid) == ("gpu0", "gpu", "NVIDIA TITAN RTX", "GPU-aa")
    assert (gpu.capacity_bytes, gpu.free_bytes) == (24 * GIB, 10 * GIB)
    assert gpu.bytes_per_s == 672e9
    assert gpu.link_bytes_per_s == pytest.approx(12e9, rel=0.01)
    assert gpu.flops["bfloat16"] == gpu.flops["float32"] < gpu.flops["float16"]
    assert all(map(gpu.is_assumed, ("bytes_per_s", "link_bytes_per_s", "flops", "matmul_bytes_per_s")))


def test_the_drivers_word_on_the_link_goes_before_the_sheet() -> None:
    narrow = card("GPU-aa", "NVIDIA GeForce RTX 4090", MaxPcieLinkGeneration=4, MaxPcieLinkWidth=4)
    (gpu,) = read_gpus(FakeNvml(narrow), None)
    assert gpu.link_bytes_per_s == pytest.approx(4 * 1.969e9 * 0.76)


def test_an_unknown_gpu_is_estimated_from_its_clocks() -> None:
    new = card("GPU-aa", "NVIDIA New", MemoryBusWidth=384, clocks={1: 2000, 2: 7001})
    (gpu,) = read_gpus(FakeNvml(new | {"NumGpuCores": 5000, "CudaComputeCapability": (12, 0)}), None)
    assert gpu.bytes_per_s == pytest.approx(672e9, rel=0.001)
    assert gpu.flops["float32"] == 5000 * 2e9 * 2 / 2
    assert gpu.flops["bfloat16"] == gpu.flops["float16"] == 2 * gpu.flops["float32"]


def test_an_unknown_gpu_that_tells_nothing_is_taken_for_a_slow_one() -> None:
    (gpu,) = read_gpus(FakeNvml(card("GPU-aa", "NVIDIA New")), None)
    assert gpu.bytes_per_s == 300e9
    assert gpu.flops["float16"] == gpu.flops["float32"] == 4e12


def test_a_gpu_that_shares_the_hosts_memory_is_left_out() -> None:
    shared = {"UUID": "GPU-aa", "Name": "NVIDIA GB10"}
    gpus = read_gpus(FakeNvml(shared, card("GPU-bb")), None)
    assert [(gpu.name, gpu.uuid) for gpu in gpus] == [("gpu0", "GPU-bb")]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-aa", "GPU-ab", "GPU-cc"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-ab"]),
        ("2, 0", ["GPU-cc", "GPU-aa"]),
        ("0,-1,1", ["GPU-aa"]),
        ("0,7,1", ["GPU-aa"]),
        ("GPU-c,0", ["GPU-cc", "GPU-aa"]),
        ("GPU-a", []),
        ("GPU-xx", []),
        ("MIG-1", ["MIG-1"]),
        ("MIG-2", []),
        ("0,0", []),
        ("none", []),
    ],
)
def test_cuda_visible_devices(visible: str | None, expected: list[str]) -> None:
    nvml = FakeNvml(card("GPU-aa"), card("GPU-ab"), card("GPU-cc"), card("MIG-1"))
    assert uuids(nvml, visible) == expected


def test_without_a_driver_the_binding_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml(fake_host(tmp_path, {})) is None


def test_a_driver_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(NVMLError=NVMLError, nvmlInit=fail))
    assert load_nvml(fake_host(tmp_path, {"/dev/nvidiactl": ""})) is None


def test_a_driver_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None)
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    assert load_nvml(fake_host(tmp_path, {"/proc/driver/nvidia/version": ""})) is binding
