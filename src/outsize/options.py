"""What users ask of a model and a machine, as the planner takes it. Light: ``outsize plan`` needs no more."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outsize.errors import UsageError
from outsize.machine.compiled import are_kernels_compiled, is_triton_installed
from outsize.machine.describe import parse_machine
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.plan import WEIGHTS, Request, Weights
from outsize.planner.planner import make_request
from outsize.sizes import parse_size

Size = int | str  # bytes, or as a person writes them: "6GiB"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The keywords of ``outsize.load``, which every command has as options.

    ``weights``: None is the format of the checkpoint. ``context``, ``batch`` and ``prompt``: tokens per sequence,
    sequences, and tokens before the first new one that memory is kept for; where they are None they follow from what
    is asked. ``ram``: most resident memory of the whole process. ``gpu_memory``: most bytes of each GPU; one size
    counts for all, several may be one text ("8GiB,4GiB"). ``weight_limits``: most bytes of weights at rest in a tier,
    also as text ("ram=0,gpu0=1GiB").

    Raises UsageError for a format or a size that cannot be understood.
    """

    weights: str | None = None
    context: int | None = None
    batch: int | None = None
    prompt: int | None = None
    ram: Size | None = None
    gpu_memory: Size | Sequence[Size] | None = None
    no_gpu: bool = False
    weight_limits: Mapping[str, Size] | str | None = None
    auto_class: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        _ = self.format, self.ram_bytes, self._gpu_bytes(), self._limits()

    @property
    def format(self) -> Weights:
        """The weight format to load."""
        for known in WEIGHTS:
            if known == (self.weights or "native"):
                return known
        raise UsageError(f"weights {self.weights!r}", need="one of " + ", ".join(WEIGHTS))

    @property
    def ram_bytes(self) -> int | None:
        """The budget of main memory."""
        return None if self.ram is None else _bytes(self.ram)

    def machine(self, description: str = "local", model_path: Path | None = None) -> Machine:
        """The machine that is described, without its GPUs where they may not be used."""
        machine = parse_machine(description, model_path=model_path)
        if not self.no_gpu:
            return machine
        return replace(machine, devices=tuple(device for device in machine.devices if device.kind != "gpu"))

    def request(self, spec: ModelSpec, machine: Machine) -> Request:
        """What the planner is asked.

        Raises UsageError for a number of sizes that is not that of the GPUs, and for tiers that the machine has not.
        """
        budgets, limits = self._gpu_bytes(), self._limits()
        if len(budgets) == 1:
            budgets *= len(machine.gpus)
        elif budgets and len(budgets) != len(machine.gpus):
            raise UsageError(
                "gpu_memory does not match the GPUs", need=f"one size or {len(machine.gpus)}", have=str(len(budgets))
            )
        tiers = [device.name for device in machine.devices if device.kind != "disk"]
        for tier in limits:
            if tier not in tiers:
                raise UsageError(f"there is no tier {tier!r} to limit weights in", need="one of " + ", ".join(tiers))
        return make_request(
            spec,
            warm="transformers" in sys.modules,
            bf12=are_kernels_compiled(os.environ),
            triton=is_triton_installed() or any(not gpu.emulated for gpu in machine.gpus),
            context=self.context,
            batch=1 if self.batch is None else self.batch,
            prompt=self.prompt,
            ram_budget=self.ram_bytes,
            gpu_budgets=budgets,
            weight_limits=tuple(limits.items()),
        )

    def _gpu_bytes(self) -> tuple[int, ...]:
        several = self.gpu_memory
        if isinstance(several, int | str):
            several = several.split(",") if isinstance(several, str) else [several]
        return tuple(_bytes(size) for size in several or ())

    def _limits(self) -> dict[str, int]:
        if not isinstance(self.weight_limits, str):
            return {tier: _bytes(size) for tier, size in (self.weight_limits or {}).items()}
        limits = {}
        for part in self.weight_limits.split(",") if self.weight_limits else ():
            tier, equals, size = part.strip().partition("=")
            if not equals:
                raise UsageError(f"--weight-limit does not understand {part!r}", need="TIER=SIZE[,...]")
            limits[tier] = parse_size(size)
        return limits


def _bytes(size: Size) -> int:
    return size if isinstance(size, int) else parse_size(size)
