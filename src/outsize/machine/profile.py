"""What ``outsize probe`` measured on this machine, kept between runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from outsize.files import write_whole
from outsize.machine.machine import Device, Machine, Overheads
from outsize.paths import outsize_cache

SCHEMA = 2
PROBE = "run `outsize probe`"


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for measured rates to hold: the host, its processor, the cores that may be used.

    And ``software``: versions and kernels, "outsize 0.1.0, torch 2.13.0, compiled kernels".
    """

    host: str
    cpu: str
    cores: int
    software: str = ""


@dataclass(frozen=True, slots=True)
class GpuFigures:
    """Measured rates of one GPU; see Device for their meaning. 0 and missing entries were not measured."""

    label: str = ""
    bytes_per_s: float = 0.0
    link_bytes_per_s: float = 0.0
    matmul_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    few_rows_flops: Mapping[str, float] = field(default_factory=dict)
    unpack_per_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured rates; see Device for their meaning. 0 and missing entries were not measured.

    ``disks``: bytes per second of direct reads, by the disk's ``Device.uuid``. ``gpus``: by the GPU's ``Device.uuid``.
    """

    identity: Identity
    memory_bytes_per_s: float = 0.0
    matmul_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    disks: Mapping[str, float] = field(default_factory=dict)
    gpus: Mapping[str, GpuFigures] = field(default_factory=dict)
    date: str = ""  # ISO 8601
    versions: Mapping[str, str] = field(default_factory=dict)  # of outsize, torch, the kernel
    overheads: Mapping[str, float] = field(default_factory=dict)  # those of Overheads that were measured
    few_rows_flops: Mapping[str, float] = field(default_factory=dict)
    unpack_per_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeptProfile:
    """The profile that was kept, or None and the reason: assumed rates are used then."""

    profile: Profile | None
    reason: str = ""


def profile_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the profile is kept."""
    return outsize_cache(environ) / "profile.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Writes the profile whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"schema": SCHEMA} | asdict(profile), indent=1))


def load_profile(path: Path, identity: Identity) -> KeptProfile:
    """The profile at ``path``, if it is sound and was measured on the machine of this ``identity``."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("schema") != SCHEMA:
            return KeptProfile(None, f"the kept measurements are of another version; {PROBE}")
        profile = _profile(stored)
    except FileNotFoundError:
        return KeptProfile(None, f"nothing was measured yet; {PROBE}")
    except OSError as error:
        return KeptProfile(None, f"the kept measurements cannot be read: {error}; {PROBE}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return KeptProfile(None, f"the kept measurements in {path} are damaged; {PROBE}")
    if profile.identity != identity and _words(profile.identity) == _words(identity):
        have = profile.identity.software
        return KeptProfile(None, f"the kept measurements are of {have}, and this is {identity.software}; {PROBE}")
    if profile.identity != identity:
        return KeptProfile(None, f"the kept measurements are of another machine ({_words(profile.identity)}); {PROBE}")
    return KeptProfile(profile)


def apply_profile(machine: Machine, profile: Profile | None) -> Machine:
    """The machine with measured rates where there are some. GPUs and the disk are found by their ``uuid``."""
    if profile is None:
        return machine
    devices = tuple(_measured(device, profile) for device in machine.devices)
    return replace(machine, devices=devices, overheads=replace(machine.overheads, **profile.overheads))


def _measured(device: Device, profile: Profile) -> Device:
    if device.kind == "ram":
        figures = GpuFigures(
            "", profile.memory_bytes_per_s, 0.0, profile.matmul_bytes_per_s, profile.flops,
            profile.few_rows_flops, profile.unpack_per_s,
        )  # fmt: skip
    elif device.kind == "disk":
        figures = GpuFigures(bytes_per_s=profile.disks.get(device.uuid, 0.0))
    else:
        figures = profile.gpus.get(device.uuid, GpuFigures())
    assumed = set(device.assumed)
    assumed -= {name for name in ("bytes_per_s", "link_bytes_per_s") if getattr(figures, name)}
    merged = {}
    rate = figures.bytes_per_s or device.bytes_per_s
    for name in ("matmul_bytes_per_s", "flops"):
        guessed, known = getattr(device, name), getattr(figures, name)
        if known and name in assumed:
            assumed = (assumed - {name}) | {f"{name}:{key}" for key in guessed if key not in known}
        # A matmul reads its weights, so a guess cannot exceed the measured rate of reading.
        most = rate if name == "matmul_bytes_per_s" else math.inf
        merged[name] = {key: min(value, most) for key, value in guessed.items()} | dict(known)
    return replace(
        device,
        bytes_per_s=rate,
        link_bytes_per_s=figures.link_bytes_per_s or device.link_bytes_per_s,
        matmul_bytes_per_s=merged["matmul_bytes_per_s"],
        flops=merged["flops"],
        few_rows_flops={**device.few_rows_flops, **figures.few_rows_flops},
        unpack_per_s={**device.unpack_per_s, **figures.unpack_per_s},
        assumed=frozenset(assumed),
    )


def _profile(stored: dict[str, Any]) -> Profile:
    """The value in the file. Raises TypeError, ValueError, KeyError or AttributeError where it is not one."""
    identity = Identity(**stored.pop("identity"))
    gpus = {uuid: _figures(figures) for uuid, figures in stored.pop("gpus").items()}
    profile = Profile(identity=identity, gpus=gpus, **stored)
    _rates(profile.matmul_bytes_per_s, profile.flops, profile.disks, {"memory": profile.memory_bytes_per_s})
    _rates(asdict(Overheads(**profile.overheads)), profile.few_rows_flops, profile.unpack_per_s)
    return profile


def _figures(stored: dict[str, Any]) -> GpuFigures:
    figures = GpuFigures(**stored)
    both = {"memory": figures.bytes_per_s, "link": figures.link_bytes_per_s}
    _rates(figures.matmul_bytes_per_s, figures.flops, figures.few_rows_flops, figures.unpack_per_s, both)
    return figures


def _rates(*mappings: Mapping[str, float]) -> None:
    for mapping in mappings:
        if not all(math.isfinite(rate) and rate >= 0 for rate in mapping.values()):
            raise ValueError("a rate that is none")


def _words(identity: Identity) -> str:
    return f"{identity.host}, {identity.cores} cores of {identity.cpu}"
