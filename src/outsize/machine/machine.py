"""What is true of a machine before any decision: where bytes can rest, how many are free, and how fast they move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from outsize.machine import rates

Kind = Literal["gpu", "ram", "disk"]
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Device:
    """One tier: ``gpu0``, ``gpu1``, ..., ``ram`` or ``disk``.

    ``bytes_per_s``: the rate at which resident weights are read for compute (HBM, memory) or, for the disk, streamed.
    ``matmul_bytes_per_s``: per data type, bytes of weights per second through a one-row matmul on this device (decode).
    ``flops``: per data type, floating-point operations per second of large matmuls (prefill); where ``unpack_per_s`` is
    known, those that are left once each matmul has brought that many elements per second of its weights into the layout
    that it wants. ``few_rows_flops``: those of each row but the first of up to 16. The last two may be empty.
    ``link_bytes_per_s``: host to device, for GPUs. The mappings know torch's names of data types, and ``int8`` and
    ``int4`` for weights quantised so. ``assumed``: the names of the fields above that nobody measured here; for one
    entry of a mapping, ``"flops:bfloat16"``.
    """

    name: str
    kind: Kind
    capacity_bytes: int
    free_bytes: int
    bytes_per_s: float
    label: str = ""  # "NVIDIA TITAN RTX", "/data on nvme0n1"
    matmul_bytes_per_s: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    flops: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    link_bytes_per_s: float = 0.0
    uuid: str = ""  # its own id: a GPU's, so that the runtime finds it whatever its number; a disk's source
    emulated: bool = False
    assumed: frozenset[str] = frozenset()
    few_rows_flops: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    unpack_per_s: Mapping[str, float] = field(default_factory=lambda: NOTHING)

    def is_assumed(self, field: str, key: str = "") -> bool:
        """Whether nobody measured this rate here: of a mapping's entry ``key`` where one is given."""
        return field in self.assumed or (bool(key) and f"{field}:{key}" in self.assumed)


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds that go elsewhere than into matmuls and reading, measured with a model that runs.

    ``block_s``: a block's small operations, for one token, where the weights between them leave nothing in the caches;
    ``small_block_s``: where they leave all of it. ``token_s``: sampling and the generation loop. ``handover_s``: from
    the last byte of a streamed group to the thread that computes. ``cold_start_s``, ``warm_start_s``: until a load can
    compute, with torch and transformers to import, and without. ``encode_bytes_per_s``: bfloat16 into 12 bits.
    ``kv_traffic``: times that decode touches the cache. ``activation_traffic``: times that a block touches the most
    activations that it holds of each token. ``stream_share``: what a sweep that computes gets of the drive's rate.
    """

    block_s: float = rates.BLOCK_OPERATIONS_S
    small_block_s: float = rates.BLOCK_OPERATIONS_S
    token_s: float = rates.TOKEN_OPERATIONS_S
    handover_s: float = rates.HANDOVER_S
    cold_start_s: float = rates.COLD_START_S
    warm_start_s: float = rates.WARM_START_S
    encode_bytes_per_s: float = rates.ENCODE_BYTES_PER_S
    kv_traffic: float = rates.KV_TRAFFIC
    activation_traffic: float = rates.ACTIVATION_TRAFFIC
    stream_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: its GPUs in order, then ``ram``, then ``disk``. ``note``: why measured rates are not used, or ""."""

    name: str
    devices: tuple[Device, ...]
    cores: int = 1
    overheads: Overheads = Overheads()
    note: str = ""

    @property
    def gpus(self) -> tuple[Device, ...]:
        """The GPUs, gpu0 first."""
        return tuple(d for d in self.devices if d.kind == "gpu")

    @property
    def ram(self) -> Device:
        """Main memory."""
        return next(d for d in self.devices if d.kind == "ram")

    @property
    def disk(self) -> Device:
        """The drive that holds the model."""
        return next(d for d in self.devices if d.kind == "disk")

    def device(self, name: str) -> Device:
        """The device of that name. Raises KeyError."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)
