"""What ``outsize doctor`` says of the host: processor, neighbours, memory, swap, huge pages."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from outsize.cli.doctor_checks import Check
from outsize.machine.detect import identity, usable_cores
from outsize.machine.linux import Host, cpu_quota, memory_limits, processor_seconds
from outsize.machine.machine import Machine
from outsize.sizes import format_size

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
LEAST_FREE = 1 << 30
WATCHED_S = 0.3  # to see what others do
BUSY_CORES = 0.3
SWAPPED = 256 << 20  # bytes in swap that are worth a word


def examine(host: Host, machine: Machine) -> Iterator[Check]:
    """A line for each of them."""
    yield from processor(host)
    yield neighbours(host)
    yield memory(host, machine)
    yield from swap(host)
    yield huge_pages(host)


def processor(host: Host) -> Iterator[Check]:
    """The processor, its cores and those of its instruction sets that matter here."""
    found = re.search(r"^flags\s*:\s*(.*)$", host.text("/proc/cpuinfo") or "", re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    cores, quota = usable_cores(host), cpu_quota(host)
    granted = "" if quota is None else f", {quota:g} cores of time by its control group"
    yield Check("processor", f"{identity(host).cpu}, {cores} cores, {len(host.affinity)} threads{granted}")
    here = [name for name in FEATURES if name in flags]
    yield Check("instructions", ", ".join(here) or "none of those that speed matmuls up", "ok" if here else "note")


def memory(host: Host, machine: Machine) -> Check:
    ram = machine.ram
    limits = [limit.limit_bytes for limit in memory_limits(host)]
    bound = ", by its control group" if limits and min(limits) <= ram.capacity_bytes else ""
    value = f"{format_size(ram.free_bytes)} free of {format_size(ram.capacity_bytes)}{bound}"
    if ram.free_bytes < LEAST_FREE:
        return Check("memory", value, "broken", "end other programs, or a larger limit")
    return Check("memory", value)


def huge_pages(host: Host) -> Check:
    """Whether buffers get huge pages: worth up to a third of the memory's rate."""
    text = host.text("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = re.search(r"\[(\w+)\]", text)
    if chosen is None:
        return Check("huge pages", "the kernel does not say", "note")
    if chosen[1] == "never":
        remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return Check("huge pages", "never: memory is read up to a third slower", "note", remedy)
    return Check("huge pages", chosen[1])


def neighbours(host: Host) -> Check:
    """What other processes take of the processors, watched for a moment."""
    began, before, own = time.monotonic(), processor_seconds(host), sum(os.times()[:2])
    time.sleep(WATCHED_S)
    worked, mine = processor_seconds(host) - before, sum(os.times()[:2]) - own
    others = max(worked - mine, 0.0) / (time.monotonic() - began)
    if others < BUSY_CORES:
        return Check("neighbours", "nobody else computes")
    value = (
        f"others take {others:.1f} of {len(host.affinity)} threads: slower than predicted, and not the time to probe"
    )
    return Check("neighbours", value, "note", "end other programs, or leave them cores (taskset)")


def swap(host: Host) -> Iterator[Check]:
    """Swap that is in use: what was read from the drive may have gone back there."""
    found = dict(re.findall(r"^(Swap\w+):\s+(\d+) kB$", host.text("/proc/meminfo") or "", re.MULTILINE))
    used = (int(found.get("SwapTotal", 0)) - int(found.get("SwapFree", 0))) * 1024
    if used >= SWAPPED:
        value = f"{format_size(used)} in use: memory is short, and weights may be swapped out"
        yield Check("swap", value, "note", "end other programs, --ram below what is free, or swapoff -a")
