"""``outsize doctor``: one screen that says whether all is as it should be here, and what to do where it is not."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import outsize
from outsize.cli import doctor_host
from outsize.cli.doctor_checks import Check
from outsize.errors import UsageError
from outsize.machine.detect import EMULATE, identity, this_machine
from outsize.machine.linux import Host
from outsize.machine.machine import Machine
from outsize.machine.profile import load_profile, profile_path
from outsize.paths import hub_cache
from outsize.sizes import format_size

MARKS = {"ok": " ", "note": "?", "broken": "!"}
TRANSFORMERS = ">=5.20,<6"  # as pyproject.toml says
OLD_PROFILE_S = 180 * 24 * 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--path", type=Path, metavar="DIR", help="where models lie (default: Hugging Face's cache)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    checks = list(examine(args.path or hub_cache(os.environ)))
    if args.json:
        print(json.dumps({"schema": 1, "checks": [asdict(check) for check in checks]}))
    else:
        for check in checks:
            print(f"{MARKS[check.state]} {check.name:12} {check.value}")
            if check.remedy:
                print(f"{'':15}try: {check.remedy}")
    return 1 if any(check.state == "broken" for check in checks) else 0


def examine(models: Path) -> Iterator[Check]:
    host = Host()
    machine = this_machine(models)
    yield Check("outsize", f"{outsize.__version__}, Python {platform.python_version()}, Linux {platform.release()}")
    yield from libraries()
    yield from requirements()
    yield from doctor_host.examine(host, machine)
    yield from gpus(machine)
    yield from drive(machine, models)
    yield measured()
    yield kernels_in_use()
    yield from gpu_kernels_in_use(machine)


def libraries() -> Iterator[Check]:
    """torch by importing it; transformers by its version, because its import takes seconds."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001  a broken installation may fail in any way
        yield Check("torch", f"cannot be imported: {error}", "broken", "pip install --force-reinstall torch")
    else:
        yield Check("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        yield Check("transformers", "is not installed", "broken", f"pip install 'transformers{TRANSFORMERS}'")
    else:
        known = (5, 20) <= tuple(map(int, re.findall(r"\d+", version)[:2])) < (6,)
        remedy = "" if known else f"pip install 'transformers{TRANSFORMERS}'"
        yield Check("transformers", version, "ok" if known else "broken", remedy)


def requirements(distribution: str = "outsize") -> Iterator[Check]:
    """What is installed in another version than outsize asks for, transformers apart."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires(distribution) or ()]
    except metadata.PackageNotFoundError:
        return  # run from its sources: nobody said what it wants
    for requirement in wanted:
        if requirement.name == "transformers" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, "is not installed", "broken", remedy)
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                yield Check(requirement.name, f"{version}, which is not {requirement.specifier}", "broken", remedy)


def gpus(machine: Machine) -> Iterator[Check]:
    """What the driver sees, and whether torch sees it too."""
    if os.environ.get(EMULATE):
        sizes = ", ".join(format_size(gpu.capacity_bytes) for gpu in machine.gpus)
        yield Check("GPUs", f"emulated: {sizes}", "note", f"unset {EMULATE} to use real ones")
        return
    seen = _torch_uuids()
    if not machine.gpus:
        yield Check("GPUs", "none that the driver shows", "ok" if not seen else "note")
        return
    for gpu in machine.gpus:
        value = f"{gpu.label}, {format_size(gpu.free_bytes)} free of {format_size(gpu.capacity_bytes)}"
        if gpu.uuid.removeprefix("GPU-").lower() in seen:
            yield Check(gpu.name, value)
        else:
            yield Check(gpu.name, f"{value}; torch does not see it", "broken", "a torch with CUDA, or --no-gpu")


def _torch_uuids() -> set[str]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties: list[Any] = [torch.cuda.get_device_properties(index) for index in range(count)]
    except Exception:  # noqa: BLE001  said already, or no working CUDA: none is seen
        return set()
    return {str(one.uuid).removeprefix("GPU-").lower() for one in properties}


def drive(machine: Machine, models: Path) -> Iterator[Check]:
    """Where models lie: room, and whether direct reads work."""
    disk = machine.disk
    room = f"{format_size(disk.free_bytes)} free of {format_size(disk.capacity_bytes)} on {disk.label}"
    yield Check("models", f"{models}: {room}")
    try:
        from outsize.probe.disk import folder_is_direct

        direct = folder_is_direct(models)
    except Exception as error:  # noqa: BLE001  no permission, a full disk, a broken torch: the screen goes on
        yield Check("direct reads", f"not tried: {error}", "note", "a folder that can be written")
        return
    if direct:
        yield Check("direct reads", "work")
    else:
        yield Check("direct reads", "are refused there: reads go through the page cache", "note", "a local drive")


def measured() -> Check:
    path = profile_path()
    kept = load_profile(path, identity())
    if kept.profile is None:
        return Check("measured", f"no: {kept.reason.partition(';')[0]}", "note", "outsize probe")
    age = time.time() - path.stat().st_mtime
    old = age > OLD_PROFILE_S
    value = f"{kept.profile.date or 'at an unknown time'}, kept in {path}"
    return Check("measured", value, "note" if old else "ok", "outsize probe, to measure again" if old else "")


def kernels_in_use() -> Check:
    """Which build of the CPU kernels computes here, or why it is torch."""
    try:
        from outsize.kernels.cpu.library import describe

        value, remedy = describe()
    except UsageError as error:
        return Check("CPU kernels", error.what, "broken", f"OUTSIZE_KERNELS={error.have or 'auto'}")
    except Exception as error:  # noqa: BLE001  a broken torch was said already
        return Check("CPU kernels", f"not known: {error}", "broken")
    return Check("CPU kernels", value, "note" if remedy else "ok", remedy)


def gpu_kernels_in_use(machine: Machine) -> Iterator[Check]:
    """What multiplies packed weights on the GPUs, where there are some: Triton's kernels, or plain torch."""
    if not any(not gpu.emulated for gpu in machine.gpus):
        return
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        value = "plain torch, which unpacks int8 and int4 weights for every use: 10 to 30 times slower"
        yield Check("GPU kernels", value, "note", "pip install triton, of the version that this torch wants")
    else:
        yield Check("GPU kernels", f"Triton {version}, for int8 and int4 weights")
