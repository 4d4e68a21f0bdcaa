"""The Plan: a frozen value that alone crosses from planning to running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from outsize.planner.weight_group import WeightGroup

Weights = Literal["native", "int8", "int4"]
WEIGHTS: tuple[Weights, ...] = ("native", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a model.

    ``context``: most tokens of one sequence, prompt and answer together. ``batch``: sequences at once.
    ``prompt``: tokens of the prompt that the first token waits for. ``ram_budget``: most bytes of resident memory of
    the whole process, None for what the machine has free. ``weight_limits``: most bytes of weights at rest, per tier.
    ``gpu_budgets``: most bytes of each GPU, in order; () for what each has free. ``warm``: the process has imported
    torch and transformers already, so the first token need not wait for that. ``bf12``: bfloat16 weights may be held in
    RAM in 12 bits, without loss, where that is faster; the compiled kernels can do it. ``triton``: torch imports
    Triton.
    """

    context: int = 2048
    batch: int = 1
    prompt: int = 512
    ram_budget: int | None = None
    gpu_budgets: tuple[int, ...] = ()
    weight_limits: tuple[tuple[str, int], ...] = ()
    warm: bool = False
    bf12: bool = False
    triton: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes planned on one tier."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    workspace_bytes: int = 0
    ring_bytes: int = 0  # the buffers that pass what is streamed, and what is loaded but not kept as it is read
    expert_cache_bytes: int = 0  # the room of single experts that do not rest there
    overhead_bytes: int = 0  # Python, torch, the CUDA context
    capacity_bytes: int = 0  # what may be used, of what is free

    @property
    def total_bytes(self) -> int:
        """All that is planned here."""
        buffers = self.workspace_bytes + self.ring_bytes + self.expert_cache_bytes
        return self.weights_bytes + self.kv_bytes + buffers + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds to the first token and per further token, and what holds them up.

    ``expert_hit_rate``: share of the experts of a token that are in memory, where some rest on disk.
    """

    first_token_s: float
    token_s: float
    bottleneck: str
    disk_bytes_per_token: int
    expert_hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes for one weight format, how fast it will be, and whether it fits.

    ``expert_slots``: of ``expert_slot_bytes`` each, for the routed experts in RAM: all that rest there, and some of
    those on disk.
    """

    weights: Weights
    request: Request
    fits: bool
    shortfall_bytes: int
    groups: tuple[WeightGroup, ...]  # in the order of the sweep
    ring_slots: int
    ring_slot_bytes: int
    usage: Mapping[str, Usage]  # by tier
    predicted: Prediction
    remedies: tuple[str, ...] = ()  # what would fit, where this does not
    file_bytes: int = 0  # of all weights in this format, as the files have them
    expert_slots: int = 0
    expert_slot_bytes: int = 0

    @property
    def devices(self) -> dict[str, str]:
        """The device that computes each module, and has its KV cache. Tensors that rest apart are not counted."""
        return {group.module: group.device for group in self.groups}  # those of the module itself come last

    @property
    def homes(self) -> dict[str, str]:
        """The tier in which each module rests, or most of it."""
        held: dict[str, dict[str, int]] = {}
        for group in self.groups:
            mine = held.setdefault(group.module, {})
            mine[group.tier] = mine.get(group.tier, 0) + group.disk_bytes
        return {module: max(mine, key=lambda tier: mine[tier]) for module, mine in held.items()}
