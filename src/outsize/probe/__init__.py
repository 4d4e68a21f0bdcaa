"""Measures this machine with the runtime's own parts: the drive, memory, matmuls, GPUs and their links.

What cannot be measured is left out and named; nothing is guessed. The process stays below ``MOST_BYTES`` of memory.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

from outsize.errors import OutsizeError
from outsize.machine.detect import identity, this_machine
from outsize.machine.machine import Machine
from outsize.machine.profile import GpuFigures, Profile, apply_profile, load_profile
from outsize.paths import hub_cache
from outsize.probe.disk import DiskRate, disk_rate
from outsize.sizes import format_size
from outsize.version import __version__

MOST_BYTES = 1_500_000_000  # of resident memory: Python and torch take some 400 MB of it
BUFFER_BYTES = 512 << 20  # weights that the matmuls read in turn: more than any cache holds
LEAST_BUFFER_BYTES = 64 << 20

Say = Callable[[str], None]


@dataclass(slots=True)
class Findings:
    """What was measured. ``disk`` is None where it could not be; ``left_out`` says what could not, and why."""

    machine: Machine
    profile: Profile
    disk: DiskRate | None = None
    buffer_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Runs a measurement; one that fails is left out, with the reason."""
        try:
            yield
        except (OutsizeError, OSError, RuntimeError, MemoryError) as error:  # torch raises RuntimeErrors
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
            self.left_out.append(f"not measured: {what}: {reason}")


def measure(
    folder: Path | None = None, say: Say = lambda text: None, environ: Mapping[str, str] = os.environ
) -> Findings:
    """Measures everything, in under a minute. ``folder``: whose drive is measured, through its weights if it has some.

    Without a folder it is Hugging Face's cache. ``say`` is told each step.
    """
    began = time.monotonic()
    machine = this_machine(folder, environ=environ)
    today = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = Findings(machine, Profile(identity(), date=today, versions=_versions()))
    load = os.getloadavg()[0]
    if load > machine.cores / 2:
        found.left_out.append(
            f"the machine is busy (load {load:.1f}): rates are too low; measure again once it is idle"
        )
    _measure_disk(found, folder or hub_cache(environ), say)
    _measure_processor(found, say)
    for gpu in machine.gpus:
        if gpu.emulated:
            found.left_out.append(f"not measured: {gpu.name}: emulated, it is as fast as main memory")
            continue
        from outsize.engine.devices import Devices
        from outsize.probe.gpu import gpu_figures

        say(f"{gpu.name}: memory, matmuls and link")
        with found.attempt(gpu.name):
            figures = gpu_figures(Devices(machine).torch_device(gpu.name), gpu)
            found.profile = replace(found.profile, gpus={**found.profile.gpus, gpu.uuid: figures})
    _measure_overheads(found, say)
    found.seconds = time.monotonic() - began
    return found


def keep(found: Findings, path: Path) -> Profile:
    """The profile to keep at ``path``: what was measured now, and of the rest what was kept there."""
    new = found.profile
    old = load_profile(path, new.identity).profile
    if old is None:
        return new
    gpus: dict[str, GpuFigures] = {**old.gpus, **new.gpus}
    return replace(
        new,
        memory_bytes_per_s=new.memory_bytes_per_s or old.memory_bytes_per_s,
        matmul_bytes_per_s={**old.matmul_bytes_per_s, **new.matmul_bytes_per_s},
        flops={**old.flops, **new.flops},
        disks={**old.disks, **new.disks},
        gpus=gpus,
        overheads={**old.overheads, **new.overheads},
        few_rows_flops={**old.few_rows_flops, **new.few_rows_flops},
        unpack_per_s={**old.unpack_per_s, **new.unpack_per_s},
    )


def _measure_disk(found: Findings, folder: Path, say: Say) -> None:
    say(f"disk: direct reads in {folder}")
    with found.attempt(f"disk ({folder})"):
        found.disk = disk_rate(folder)
        if found.disk.direct:
            found.profile = replace(found.profile, disks={found.machine.disk.uuid: found.disk.bytes_per_s})
        else:
            found.left_out.append(
                f"not kept: disk ({folder}): direct reads are refused, so this is the page cache's rate"
            )


def _measure_processor(found: Findings, say: Say) -> None:
    found.buffer_bytes = min(BUFFER_BYTES, found.machine.ram.free_bytes // 4)
    if found.buffer_bytes < LEAST_BUFFER_BYTES:
        free = format_size(found.machine.ram.free_bytes)
        found.left_out.append(f"not measured: memory and matmuls: only {free} of memory is free")
        return
    say("memory")
    from outsize.probe.processor import Bench

    bench = Bench(found.buffer_bytes)
    with found.attempt("memory"):
        found.profile = replace(found.profile, memory_bytes_per_s=bench.memory_rate())
    for key in bench.keys:
        say(f"matmuls in {key}")
        with found.attempt(f"matmuls in {key}"):
            rates = bench.matmul(key)
            found.profile = replace(
                found.profile,
                matmul_bytes_per_s={**found.profile.matmul_bytes_per_s, key: rates.bytes_per_s},
                flops={**found.profile.flops, key: rates.flops},
                few_rows_flops={**found.profile.few_rows_flops, key: rates.few_rows_flops},
                unpack_per_s={**found.profile.unpack_per_s, key: rates.unpack_per_s},
            )

    if "bf12" in bench.keys:
        with found.attempt("making 12-bit weights"):
            found.profile = replace(found.profile, overheads={"encode_bytes_per_s": bench.encode_rate()})


def _measure_overheads(found: Findings, say: Say) -> None:
    """What remains once the rates above are known; without them it would be guessed."""
    if not found.profile.matmul_bytes_per_s:
        return
    from outsize.probe.overheads import measure_overheads

    with found.attempt("what a running model takes besides"):
        measured = measure_overheads(apply_profile(found.machine, found.profile), say)
        found.profile = replace(found.profile, overheads={**found.profile.overheads, **measured})


def _versions() -> dict[str, str]:
    return {"outsize": __version__, "torch": metadata.version("torch"), "kernel": platform.release()}
