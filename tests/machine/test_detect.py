import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from machine.fake_host import GIB, V2_MOUNT, fake_host
from machine.fake_nvml import FakeNvml, card

import outsize
from outsize.errors import UsageError
from outsize.machine import detect
from outsize.machine.detect import identity, software, this_machine, usable_cores
from outsize.machine.linux import Host
from outsize.machine.machine import Machine
from outsize.machine.profile import Identity, Profile


def look(host: Host, nvml: Any = None, path: Path = Path("/models"), **environ: str) -> Machine:
    return this_machine(path, host=host, environ=environ, nvml=lambda host: nvml)


def test_this_very_machine() -> None:
    machine = this_machine(environ={"HOME": "/"})
    assert machine.name == "local"
    assert machine.ram.capacity_bytes >= machine.ram.free_bytes > 0
    assert machine.disk.capacity_bytes >= machine.disk.free_bytes > 0
    assert machine.cores >= 1
    assert identity().cores == machine.cores


def test_memory_of_the_host(tmp_path: Path) -> None:
    ram = look(fake_host(tmp_path, {}), OUTSIZE_KERNELS="torch").ram
    assert (ram.capacity_bytes, ram.free_bytes, ram.label) == (64 * GIB, 60 * GIB, "A Processor")
    assert ram.bytes_per_s == 40e9
    assert ram.matmul_bytes_per_s["bfloat16"] == 28e9
    assert ram.assumed == {"bytes_per_s", "matmul_bytes_per_s", "flops"}
    compiled = look(fake_host(tmp_path, {}), OUTSIZE_KERNELS_LIBRARY="kernels.so").ram
    assert compiled.matmul_bytes_per_s["int4"] == 36e9


def test_what_this_process_holds_already_is_free_to_it(tmp_path: Path) -> None:
    held = {"/proc/self/status": "VmRSS:\t 3145728 kB\nRssAnon:\t 2097152 kB\n"}
    assert look(fake_host(tmp_path, held)).ram.free_bytes == 62 * GIB


def test_memory_of_the_group_where_that_is_less(tmp_path: Path) -> None:
    group = {
        "/proc/self/cgroup": "0::/job\n",
        "/proc/self/mountinfo": V2_MOUNT.format(root="/"),
        "/sys/fs/cgroup/job/memory.max": 7 * GIB,
        "/sys/fs/cgroup/job/memory.current": GIB,
    }
    ram = look(fake_host(tmp_path, group)).ram
    assert (ram.capacity_bytes, ram.free_bytes) == (7 * GIB, 6 * GIB)


def test_a_system_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {"/proc/meminfo": "", "/proc/cpuinfo": "", "/proc/self/mountinfo": ""})
    machine = look(host)
    assert (machine.ram.capacity_bytes, machine.ram.free_bytes, machine.ram.label) == (0, 0, "")
    assert machine.disk.label == "/ on unknown"
    assert identity(host) == Identity("box", "unknown processor", 4, software(os.environ))


def test_what_computes_is_part_of_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "are_kernels_compiled", lambda environ: "OUTSIZE_KERNELS" not in environ)
    plain = f"outsize {outsize.__version__}, torch {metadata.version('torch')}"
    assert software({}) == f"{plain}, compiled kernels"
    assert software({"OUTSIZE_KERNELS": "torch", "OMP_NUM_THREADS": "1"}) == f"{plain}, kernels in torch torch 1"


def test_cores_are_not_threads_and_obey_the_quota(tmp_path: Path) -> None:
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files: dict[str, object] = {siblings.format(cpu): f"{cpu % 2},{cpu % 2 + 2}\n" for cpu in range(4)}
    assert usable_cores(fake_host(tmp_path, files)) == 2
    quota = {"/proc/self/cgroup": "0::/\n", "/proc/self/mountinfo": V2_MOUNT.format(root="/")}
    for grant, cores in (("40000 100000", 1), ("150000 100000", 2), ("900000 100000", 2)):
        assert usable_cores(fake_host(tmp_path, files | quota | {"/sys/fs/cgroup/cpu.max": grant})) == cores


@pytest.mark.parametrize(
    ("source", "fstype", "spinning", "rate", "uuid"),
    [
        ("/dev/nvme0n1p2", "ext4", "", 2e9, "/dev/nvme0n1p2"),
        ("/dev/sda1", "ext4", "0\n", 0.5e9, "/dev/sda1"),
        ("/dev/sda1", "ext4", "1\n", 0.15e9, "/dev/sda1"),
        ("/dev/vda", "ext4", "", 2e9, "/dev/vda"),
        ("overlay", "overlay", "", 2e9, "overlay:/models"),
        ("server:/export", "nfs4", "", 0.3e9, "server:/export:/models"),
    ],
)
def test_the_drive(tmp_path: Path, source: str, fstype: str, spinning: str, rate: float, uuid: str) -> None:
    lines = (
        "1 0 0:1 / / rw - ext4 /dev/root rw\n2 1 0:2 / /models rw - tmpfs covered rw\n"
        f"3 1 0:3 / /models rw - {fstype} {source} rw\n4 1 0:4 / /models2 rw - ext4 /dev/other rw\n"
    )
    disk = look(fake_host(tmp_path, {"/proc/self/mountinfo": lines, "/sys/block/sda/queue/rotational": spinning})).disk
    assert (disk.bytes_per_s, disk.uuid, disk.is_assumed("bytes_per_s")) == (rate, uuid, True)
    assert disk.label == f"/models on {source.removeprefix('/dev/')}"


def test_gpus_come_first_and_the_library_is_closed(tmp_path: Path) -> None:
    nvml = FakeNvml(card("GPU-aa"), card("GPU-bb"))
    machine = look(fake_host(tmp_path, {}), nvml, CUDA_VISIBLE_DEVICES="1")
    assert [(device.name, device.uuid) for device in machine.devices[:1]] == [("gpu0", "GPU-bb")]
    assert [device.name for device in machine.devices] == ["gpu0", "ram", "disk"]
    assert not nvml.running


def test_emulated_gpus_take_the_place_of_real_ones(tmp_path: Path) -> None:
    nvml = FakeNvml(card("GPU-aa"))
    machine = look(fake_host(tmp_path, {}), nvml, OUTSIZE_EMULATE_GPUS="64MiB, 1GiB")
    assert [(gpu.name, gpu.capacity_bytes, gpu.free_bytes) for gpu in machine.gpus] == [
        ("gpu0", 64 * 2**20, 64 * 2**20),
        ("gpu1", GIB, GIB),
    ]
    for gpu in machine.gpus:
        assert gpu.emulated
        assert gpu.bytes_per_s == gpu.link_bytes_per_s == machine.ram.bytes_per_s
        assert gpu.is_assumed("link_bytes_per_s")
        assert (gpu.flops, gpu.matmul_bytes_per_s) == (machine.ram.flops, machine.ram.matmul_bytes_per_s)


def test_emulated_gpus_are_as_fast_as_measured_memory(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {})
    profile = Profile(identity(host), memory_bytes_per_s=45e9)
    machine = this_machine(Path("/"), profile, host=host, environ={"OUTSIZE_EMULATE_GPUS": "64MiB"})
    assert machine.gpus[0].bytes_per_s == machine.gpus[0].link_bytes_per_s == 45e9
    assert not machine.gpus[0].is_assumed("link_bytes_per_s")


@pytest.mark.parametrize("sizes", ["0", "64MiB,", "many"])
def test_emulated_gpus_of_no_size(tmp_path: Path, sizes: str) -> None:
    with pytest.raises(UsageError):
        look(fake_host(tmp_path, {}), OUTSIZE_EMULATE_GPUS=sizes)
