"""``--machine M``: this machine, a preset, a JSON file, or a description on the spot.

The form of the shipped presets and of a user's own machine file:

    {"name": "my-box", "note": "where the figures come from", "cores": 8,
     "devices": [{"kind": "gpu", "label": "NVIDIA TITAN RTX", "capacity_bytes": "24GiB"},
                 {"kind": "ram", "capacity_bytes": "64GiB", "bytes_per_s": "40GB/s"},
                 {"kind": "disk", "capacity_bytes": "2TiB", "bytes_per_s": "3GB/s"}]}

Sizes and rates are numbers or as people write them. Every key of Device may be given. What is missing is filled in:
``free_bytes`` from the capacity, a GPU's rates from its maker's sheet by its ``label``, the rest from cautious
constants. All rates count as assumed, unless ``assumed`` says which ones do. The ``machine`` object of
``plan --json`` can be read back, too.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from outsize.errors import UsageError
from outsize.machine import rates as assumed_rates
from outsize.machine.detect import identity, this_machine
from outsize.machine.gpu_specs import gpu_sheet
from outsize.machine.machine import Device, Kind, Machine, Overheads
from outsize.machine.profile import load_profile, profile_path
from outsize.sizes import parse_rate, parse_size

PRESETS = Path(__file__).parent / "presets"
GRAMMAR = "gpu=24GiB,gpu=24GiB,ram=64GiB,disk=2TiB@3GB/s"
DESCRIBED_CORES = 8  # of a machine whose description does not say
KEYS = frozenset(field.name for field in fields(Device))
KINDS: tuple[Kind, ...] = ("gpu", "ram", "disk")
MAPPINGS = ("matmul_bytes_per_s", "flops", "few_rows_flops", "unpack_per_s")


def preset_names() -> tuple[str, ...]:
    """Names of the machines that are described in the package."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.json")))


def parse_machine(
    text: str = "local", *, model_path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Machine:
    """The machine that ``text`` names.

    ``local``: this one, its disk the file system of ``model_path``, its rates those that a probe kept. Else a preset's
    name; a path to a JSON file (as above; its name ends in .json or has a slash); or inline, a comma between devices:

        gpu=SIZE[:FREE][@RATE]  ram=SIZE[:FREE][@RATE]  disk=SIZE[:FREE][@RATE]  cores=N

    where ``gpu=24GiB:10GiB`` is a GPU with 10 of its 24 GiB free now. ``ram`` is required; without ``disk`` nothing can
    rest on one. Raises UsageError.
    """
    text = text.strip()
    if text == "local":
        kept = load_profile(profile_path(environ), identity())
        return replace(this_machine(model_path, kept.profile, environ=environ), note=kept.reason)
    if text in preset_names():
        return _from_file(PRESETS / f"{text}.json", text)
    if "=" in text and not text.endswith(".json"):
        return machine_from_json(_inline(text), text)
    if text.endswith(".json") or "/" in text:
        return _from_file(Path(text).expanduser(), Path(text).stem)
    raise UsageError(
        f"no such machine: {text!r}",
        need="local, a JSON file, a preset (" + ", ".join(preset_names()) + f") or {GRAMMAR}",
    )


def _from_file(path: Path, name: str) -> Machine:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"no machine can be read from {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    return machine_from_json(described, name)


def _inline(text: str) -> dict[str, Any]:
    """The machine file that an inline description stands for."""
    devices: list[dict[str, Any]] = []
    machine: dict[str, Any] = {"devices": devices}
    for part in text.split(","):
        kind, _, value = (word.strip() for word in part.partition("="))
        if kind == "cores" and value.isdecimal() and "cores" not in machine:
            machine["cores"] = int(value)
            continue
        match = re.fullmatch(r"([^:@]+)(?::([^@]+))?(?:@(.+))?", value)
        if kind not in ("gpu", "ram", "disk") or match is None:
            raise UsageError(f"{part.strip()!r} in the machine {text!r} describes no device", need=GRAMMAR)
        size, free, rate = match.groups()
        device = {"kind": kind, "capacity_bytes": size}
        if free is not None:
            device["free_bytes"] = free
        if rate is not None:
            device["bytes_per_s"] = rate
        devices.append(device)
    return machine


def machine_to_json(machine: Machine) -> dict[str, Any]:
    """All of the machine, for a file. ``machine_from_json`` gives the same machine back."""
    devices = [_device_to_json(device) for device in machine.devices]
    overheads = asdict(machine.overheads)
    return {"name": machine.name, "cores": machine.cores, "devices": devices, "overheads": overheads}


def machine_summary(machine: Machine) -> dict[str, Any]:
    """The ``machine`` object of ``plan --json``; ``assumed`` is about ``bytes_per_s``."""
    return {
        "name": machine.name,
        "devices": [
            {
                "name": device.name,
                "capacity_bytes": device.capacity_bytes,
                "free_bytes": device.free_bytes,
                "bytes_per_s": device.bytes_per_s,
                "assumed": device.is_assumed("bytes_per_s"),
            }
            for device in machine.devices
        ],
    }


def machine_from_json(described: object, name: str) -> Machine:
    """The machine that a JSON value describes; ``name`` is used where it has none. Raises UsageError.

    GPUs are numbered in their order. ``ram`` is required; without a ``disk`` there is one of no bytes.
    """
    if not isinstance(described, dict) or not isinstance(described.get("devices"), list):
        raise UsageError(f"{name} describes no machine", need='an object with a list of "devices"')
    unknown = set(described) - {"name", "note", "cores", "devices", "overheads"}
    if unknown:
        raise UsageError(f"{name}: unknown key {min(unknown)!r}", need="name, note, cores, devices or overheads")
    cores = described.get("cores", DESCRIBED_CORES)
    if type(cores) is not int or cores < 1:
        raise UsageError(f"{name}: cores is {cores!r}", need="a whole number above zero")
    devices = [_device(entry, cores, name) for entry in described["devices"]]
    ram, disks = ([d for d in devices if d.kind == kind] for kind in ("ram", "disk"))
    if len(ram) != 1 or len(disks) > 1:
        raise UsageError(f"{name}: {len(ram)} ram and {len(disks)} disk", need="one ram, and one disk at most")
    if not disks:
        disks = [_device({"kind": "disk", "capacity_bytes": 0}, cores, name)]
    gpus = [_named(d, f"gpu{index}") for index, d in enumerate(d for d in devices if d.kind == "gpu")]
    overheads = _overheads(described.get("overheads", {}), name)
    return Machine(str(described.get("name", name)), (*gpus, ram[0], disks[0]), cores, overheads)


def _device_to_json(device: Device) -> dict[str, Any]:
    out: dict[str, Any] = {key: getattr(device, key) for key in sorted(KEYS)}
    return out | {key: dict(out[key]) for key in MAPPINGS} | {"assumed": sorted(device.assumed)}


def _device(entry: object, cores: int, machine: str) -> Device:
    if not isinstance(entry, dict):
        raise UsageError(f"{machine}: {entry!r} describes no device", need="an object")
    given: dict[str, Any] = dict(entry)
    # "gpu0" tells its kind.
    word = given.pop("kind", None) or str(given.get("name", "")).rstrip("0123456789")
    kind: Kind | None = next((kind for kind in KINDS if kind == word), None)
    if kind is None:
        raise UsageError(f"{machine}: a device of kind {word!r}", need="gpu, ram or disk")
    where = f"{machine}: {kind}"
    unknown = set(given) - KEYS
    if unknown:
        raise UsageError(f"{where} has the unknown key {min(unknown)!r}", need=", ".join(sorted(KEYS)))
    capacity = _size(given.get("capacity_bytes"), f"{where}.capacity_bytes")
    free = _size(given.get("free_bytes", capacity), f"{where}.free_bytes")
    if free > capacity or (not capacity and kind != "disk"):
        raise UsageError(
            f"{where} of {capacity} bytes with {free} free", need="a capacity above zero, and no more free"
        )
    rates = _assumed(kind, str(given.get("label", "")), cores, _given_rates(given, where))
    return Device(
        name=kind,
        kind=kind,
        capacity_bytes=capacity,
        free_bytes=free,
        label=str(given.get("label", "")),
        uuid=str(given.get("uuid", "")),
        emulated=given.get("emulated", False) is True,
        assumed=_assumed_names(given.get("assumed", True), kind, where),
        **rates,
    )


def _overheads(given: object, name: str) -> Overheads:
    known = asdict(Overheads())
    if not isinstance(given, dict) or set(given) - set(known):
        raise UsageError(f"{name}.overheads is {given!r}", need="an object with some of " + ", ".join(known))
    for key, value in given.items():
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UsageError(f"{name}.overheads.{key} is {value!r}", need="a number of zero or more")
    return Overheads(**given)


def _given_rates(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    rates: dict[str, Any] = {
        key: _rate(given[key], f"{where}.{key}") for key in ("bytes_per_s", "link_bytes_per_s") if key in given
    }
    for key in MAPPINGS:
        if key in given:
            if not isinstance(given[key], dict):
                raise UsageError(f"{where}.{key} is {given[key]!r}", need="an object of rates by data type")
            rates[key] = {dtype: _rate(rate, f"{where}.{key}.{dtype}") for dtype, rate in given[key].items()}
    return rates


def _assumed(kind: str, label: str, cores: int, rates: dict[str, Any]) -> dict[str, Any]:
    """The given rates and, for the missing ones, assumed ones. A matmul is never faster than the memory it reads."""
    if kind == "disk":
        return {"bytes_per_s": assumed_rates.DISK[""]} | rates
    if kind == "ram":
        memory = rates.get("bytes_per_s") or assumed_rates.memory_rate(cores)
        filled = {"bytes_per_s": memory, "link_bytes_per_s": 0.0}
        matmul, flops = assumed_rates.cpu_matmul(cores, memory), assumed_rates.cpu_flops(cores)
    else:
        sheet = gpu_sheet(label) or assumed_rates.UNKNOWN_GPU
        memory = rates.get("bytes_per_s") or sheet.memory
        filled = {"bytes_per_s": memory, "link_bytes_per_s": sheet.link_bytes_per_s}
        matmul, flops = assumed_rates.gpu_matmul(memory), dict(sheet.flops)
    mappings = {"matmul_bytes_per_s": matmul, "flops": flops}
    return filled | rates | {key: mappings.get(key, {}) | rates.get(key, {}) for key in MAPPINGS}


def _assumed_names(assumed: object, kind: str, where: str) -> frozenset[str]:
    rates = {"gpu": assumed_rates.ALL_RATES, "ram": assumed_rates.ALL_RATES - {"link_bytes_per_s"}}
    every = rates.get(kind, frozenset({"bytes_per_s"}))
    if isinstance(assumed, bool):  # as `plan --json` prints it: about bytes_per_s, the only rate it shows
        return every if assumed else every - {"bytes_per_s"}
    names = frozenset(map(str, assumed)) if isinstance(assumed, list) else None
    if names is None or any(name.partition(":")[0] not in assumed_rates.ALL_RATES for name in names):
        listed = ", ".join(sorted(assumed_rates.ALL_RATES))
        raise UsageError(f"{where}.assumed is {assumed!r}", need=f"a list of {listed}")
    return names


def _size(value: object, where: str) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if type(value) is not int or value < 0:
        raise UsageError(f"{where} is {value!r}", need='bytes, as a whole number or as "24GiB"')
    return value


def _rate(value: object, where: str) -> float:
    if isinstance(value, str):
        return parse_rate(value)
    rate = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if 0 < rate < math.inf or (rate == 0 and where.endswith(".link_bytes_per_s")):  # memory has no link
        return rate
    raise UsageError(f"{where} is {value!r}", need='a number per second above zero, or "3GB/s"')


def _named(device: Device, name: str) -> Device:
    return Device(**{key: getattr(device, key) for key in KEYS} | {"name": name})
