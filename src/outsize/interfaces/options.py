"""Options that several commands share, and what they mean for a machine and a request."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from outsize.errors import UsageError
from outsize.facts.machine import Machine
from outsize.facts.sizes import parse_size
from outsize.planning.plan import WEIGHTS


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL and ``--revision``."""
    parser.add_argument("model", metavar="MODEL", help="a hub id, a local folder, or a name in the local cache")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")


def add_request(parser: argparse.ArgumentParser) -> None:
    """What a command asks of model and machine: format, context, batch, budgets and limits; and ``--json``."""
    parser.add_argument("--weights", choices=WEIGHTS, help="weight format")
    parser.add_argument(
        "--context", type=int, metavar="N", help="most tokens of a sequence, prompt and answer together"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--ram", type=parse_size, metavar="SIZE", help="most RAM in all, buffers and caches included")
    parser.add_argument(
        "--gpu-memory", metavar="SIZE[,SIZE...]", help="most memory of each GPU; one size counts for all"
    )
    parser.add_argument("--no-gpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--weight-limit", metavar="TIER=SIZE[,...]", help="most bytes of weights at rest in a tier, e.g. ram=0"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def allowed_machine(machine: Machine, *, no_gpu: bool) -> Machine:
    """The machine, without its GPUs if none shall be used."""
    if not no_gpu:
        return machine
    return replace(machine, devices=tuple(device for device in machine.devices if device.kind != "gpu"))


def request_bounds(
    machine: Machine, *, ram: int | None = None, gpu_memory: str | None = None, weight_limit: str | None = None
) -> dict[str, Any]:
    """Budgets and limits as ``make_request`` takes them. Raises UsageError for tiers and GPUs the machine has not."""
    return {
        "ram_budget": ram,
        "gpu_budgets": gpu_budgets(machine, gpu_memory),
        "weight_limits": weight_limits(machine, weight_limit),
    }


def gpu_budgets(machine: Machine, text: str | None) -> tuple[int, ...]:
    """Bytes per GPU of ``"8GiB"`` (each) or ``"8GiB,4GiB"`` (in order). Raises UsageError for another number."""
    if text is None:
        return ()
    sizes = tuple(parse_size(part) for part in text.split(","))
    count = len(machine.gpus)
    if len(sizes) == 1:
        return sizes * count
    if len(sizes) != count:
        raise UsageError("--gpu-memory does not match the GPUs", need=f"one size or {count}", have=str(len(sizes)))
    return sizes


def weight_limits(machine: Machine, text: str | None) -> tuple[tuple[str, int], ...]:
    """Bytes per tier of ``"ram=0,gpu0=1GiB"``. Raises UsageError for tiers that are not there, and for the disk."""
    limits = []
    tiers = [device.name for device in machine.devices if device.kind != "disk"]
    for part in (text or "").split(",") if text else ():
        tier, equals, size = part.strip().partition("=")
        if not equals or tier not in tiers:
            raise UsageError(
                f"--weight-limit does not understand {part!r}", need="TIER=SIZE with a tier of " + ", ".join(tiers)
            )
        limits.append((tier, parse_size(size)))
    return tuple(limits)


def limits_by_tier(text: str | None) -> dict[str, int]:
    """Bytes by tier of ``"ram=0,gpu0=1GiB"``; whether the machine has those tiers is not asked here."""
    limits = {}
    for part in text.split(",") if text else ():
        tier, equals, size = part.strip().partition("=")
        if not equals:
            raise UsageError(f"--weight-limit does not understand {part!r}", need="TIER=SIZE[,...]")
        limits[tier] = parse_size(size)
    return limits
