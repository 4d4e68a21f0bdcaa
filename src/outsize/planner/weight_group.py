"""The unit of placing, reading and binding: tensors that move together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["native", "int8", "int4", "fp8", "mxfp4", "bf12"]
PACKED: tuple[Format, ...] = ("int4", "mxfp4", "int8", "fp8")  # a group of several is called by the first
Residency = Literal["resident", "streamed", "cached"]


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """Tensors of one module that are placed, read and bound together.

    ``tier``: where they rest (gpu0..., ram, disk); ``device``: where they compute (gpu0..., or ram for the CPU).
    ``residency``: resident (read once), streamed (read through the ring in every sweep) or cached (kept while used:
    embedding rows, experts). ``use``: expected uses per token: 1 for dense weights, 0 for looked-up rows, below 1 for
    experts. ``experts``: how many routed experts they are, each of which is fetched by itself; else 0. ``in_place``:
    they rest in RAM as they are in the files, so they are read where they stay and need no buffer. ``disk_bytes``: what
    reading them once takes; ``rest_bytes``: what they take where they rest; ``buffer_bytes``: the ring buffer that they
    pass through, 0 where they pass through none.
    """

    module: str
    tensors: tuple[str, ...]
    disk_bytes: int
    rest_bytes: int
    buffer_bytes: int
    format: Format
    tier: str
    device: str
    residency: Residency
    use: float = 1.0
    in_place: bool = False
    experts: int = 0
    reason: str = ""

    @property
    def streamed(self) -> bool:
        """Whether every sweep reads it again."""
        return self.residency == "streamed"
