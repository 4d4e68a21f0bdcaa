"""This machine: GPUs, memory, the drive and the cores, as far as this process may use them now."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from outsize.errors import UsageError
from outsize.machine import rates
from outsize.machine.compiled import are_kernels_compiled
from outsize.machine.linux import Host, Mount, cpu_quota, memory_limits
from outsize.machine.machine import Device, Machine
from outsize.machine.nvidia import load_nvml, read_gpus
from outsize.machine.profile import Identity, Profile, apply_profile
from outsize.paths import hub_cache
from outsize.sizes import parse_size
from outsize.version import __version__

EMULATE = "OUTSIZE_EMULATE_GPUS"
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "gpfs", "beegfs"})


def this_machine(
    model_path: Path | None = None,
    profile: Profile | None = None,
    *,
    host: Host | None = None,
    environ: Mapping[str, str] = os.environ,
    nvml: Callable[[Host], Any | None] = load_nvml,
) -> Machine:
    """This machine with what is free now, named "local".

    The disk is the file system that holds ``model_path``, or Hugging Face's cache where that is None. Rates are
    ``profile``'s where it has them, otherwise assumed. With OUTSIZE_EMULATE_GPUS the machine has the emulated GPUs of
    the given sizes, computed by the CPU in main memory, and no real ones. Raises UsageError where that variable makes
    no sense.
    """
    host = host or Host()
    cores = usable_cores(host)
    devices = (_ram(host, cores, are_kernels_compiled(environ)), _disk(host, model_path or hub_cache(environ)))
    emulated = environ.get(EMULATE, "").strip()
    gpus = () if emulated else _gpus(host, nvml, environ)
    machine = apply_profile(Machine("local", (*gpus, *devices), cores), profile)
    if emulated:
        machine = replace(machine, devices=(*_emulated(emulated, machine.ram), *machine.devices))
    return machine


def identity(host: Host | None = None, environ: Mapping[str, str] = os.environ) -> Identity:
    """Who this machine is, and what computes on it, for kept measurements."""
    host = host or Host()
    cpu = _cpu_field(host, "model name") or "unknown processor"
    return Identity(host.name, cpu, usable_cores(host), software(environ))


def software(environ: Mapping[str, str]) -> str:
    """What measured rates depend on besides the machine: "outsize 0.1.0, torch 2.13.0, compiled kernels"."""
    kernels = "compiled kernels" if are_kernels_compiled(environ) else "kernels in torch"
    said = [environ[name] for name in ("OUTSIZE_KERNELS", "OMP_NUM_THREADS") if environ.get(name)]
    return f"outsize {__version__}, torch {metadata.version('torch')}, {' '.join([kernels, *said])}"


def usable_cores(host: Host) -> int:
    """Cores, not hardware threads, that this process may use: the least of its affinity and its groups' quota.

    A quota is rounded to whole cores, at least one.
    """
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {host.text(topology.format(cpu)) or f"cpu{cpu}" for cpu in host.affinity}
    quota = cpu_quota(host)
    return len(cores) if quota is None else max(1, min(len(cores), int(quota + 0.5)))


def _gpus(host: Host, load: Callable[[Host], Any | None], environ: Mapping[str, str]) -> tuple[Device, ...]:
    nvml = load(host)
    if nvml is None:
        return ()
    try:
        return read_gpus(nvml, environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        nvml.nvmlShutdown()


def _emulated(sizes: str, ram: Device) -> tuple[Device, ...]:
    """GPUs in main memory: as fast as it, over a link as fast as it."""
    gpus = []
    for index, size in enumerate(map(parse_size, sizes.split(","))):
        if not size:
            raise UsageError(f"an emulated GPU of no bytes: {EMULATE}={sizes}", need="sizes above zero")
        assumed = ram.assumed | ({"link_bytes_per_s"} if ram.is_assumed("bytes_per_s") else set())
        gpus.append(
            Device(
                name=f"gpu{index}",
                kind="gpu",
                capacity_bytes=size,
                free_bytes=size,
                bytes_per_s=ram.bytes_per_s,
                label="emulated",
                matmul_bytes_per_s=ram.matmul_bytes_per_s,
                flops=ram.flops,
                few_rows_flops=ram.few_rows_flops,
                unpack_per_s=ram.unpack_per_s,
                link_bytes_per_s=ram.bytes_per_s,
                emulated=True,
                assumed=frozenset(assumed),
            )
        )
    return tuple(gpus)


def _ram(host: Host, cores: int, compiled: bool) -> Device:
    """Memory: the least of what the host has and what the control groups grant.

    What this process holds already counts as free: plans are about the whole process, Python included.
    """
    meminfo = host.text("/proc/meminfo") or ""
    fields = {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    total, limits = fields.get("MemTotal", 0), memory_limits(host)
    # Kernels before 3.14 have no MemAvailable.
    free = min([fields.get("MemAvailable", fields.get("MemFree", 0)), *(limit.free_bytes for limit in limits)])
    held = re.search(r"^RssAnon:\s+(\d+) kB$", host.text("/proc/self/status") or "", re.MULTILINE)
    features = frozenset((_cpu_field(host, "flags") or "").split())
    rate = rates.memory_rate(cores)
    return Device(
        name="ram",
        kind="ram",
        capacity_bytes=min([total, *(limit.limit_bytes for limit in limits)]),
        free_bytes=free + (int(held[1]) * 1024 if held else 0),
        bytes_per_s=rate,
        label=_cpu_field(host, "model name") or "",
        matmul_bytes_per_s=rates.cpu_matmul(cores, rate, features, compiled=compiled),
        flops=rates.cpu_flops(cores, features),
        assumed=rates.ALL_RATES - {"link_bytes_per_s"},
    )


def _disk(host: Host, path: Path) -> Device:
    path = path.expanduser().resolve()
    capacity, free = host.space(path)
    mount = _mount_of(host, PurePosixPath(path))
    source = mount.source.removeprefix("/dev/")
    return Device(
        name="disk",
        kind="disk",
        capacity_bytes=capacity,
        free_bytes=free,
        bytes_per_s=rates.DISK[_drive(host, mount)],
        label=f"{mount.point} on {source}",
        # Anonymous sources ("overlay", "tmpfs") are told apart by where they are mounted.
        uuid=mount.source if mount.source.startswith("/dev/") else f"{mount.source}:{mount.point}",
        assumed=frozenset({"bytes_per_s"}),
    )


def _mount_of(host: Host, path: PurePosixPath) -> Mount:
    """The mount that the path lies on: the deepest one, and of those on one point the last."""
    around = [mount for mount in host.mounts() if path.is_relative_to(mount.point)]
    unknown = Mount("/", "/", "", "unknown", ())
    # max() keeps the first of equals, so the last mount must come first.
    return max(reversed(around), key=lambda mount: len(PurePosixPath(mount.point).parts), default=unknown)


def _drive(host: Host, mount: Mount) -> str:
    """The kind of drive, a key of assumed_rates.DISK; "" for one that cannot be told.

    Only of SATA and SAS drives (sda1) the kernel's word on spinning is taken: virtual drives say so at random.
    """
    name = mount.source.removeprefix("/dev/")
    if mount.fstype in NETWORK:
        return "network"
    if name.startswith("nvme"):
        return "nvme"
    if re.fullmatch(r"sd[a-z]+\d*", name):
        spinning = host.text(f"/sys/block/{name.rstrip('0123456789')}/queue/rotational") or ""
        return "spinning" if spinning.strip() == "1" else "sata"
    return ""


def _cpu_field(host: Host, name: str) -> str | None:
    """The first processor's field of /proc/cpuinfo, or None."""
    found = re.search(rf"^{name}\s*:\s*(.*)$", host.text("/proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else None
