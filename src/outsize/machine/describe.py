"""``--machine M``: this machine, a preset, a JSON file, or a description on the spot."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outsize.errors import UsageError
from outsize.machine.detect import identity, this_machine
from outsize.machine.machine import Machine
from outsize.machine.machine_json import machine_from_json
from outsize.machine.profile import load_profile, profile_path

PRESETS = Path(__file__).parent / "presets"
GRAMMAR = "gpu=24GiB,gpu=24GiB,ram=64GiB,disk=2TiB@3GB/s"


def preset_names() -> tuple[str, ...]:
    """Names of the machines that are described in the package."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.json")))


def parse_machine(
    text: str = "local", *, model_path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Machine:
    """The machine that ``text`` names.

    ``local``: this one, its disk the file system of ``model_path``, its rates those that a probe kept. Else a preset's
    name; a path to a JSON file (see machine_json; it ends in .json or has a slash); or inline, a comma between devices:

        gpu=SIZE[:FREE][@RATE]  ram=SIZE[:FREE][@RATE]  disk=SIZE[:FREE][@RATE]  cores=N

    where ``gpu=24GiB:10GiB`` is a GPU with 10 of its 24 GiB free now. ``ram`` is required; without ``disk`` nothing can
    rest on one. Raises UsageError.
    """
    text = text.strip()
    if text == "local":
        kept = load_profile(profile_path(environ), identity())
        return this_machine(model_path, kept.profile, environ=environ)
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
