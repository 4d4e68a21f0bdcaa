"""Seconds: what reading and computing a module costs on a device. One formula per function.

The rates come from the machine; where it does not state one, the shares below stand in for it and are marked assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from outsize.machine.machine import Device
from outsize.models.bf12_layout import bf12_bytes
from outsize.models.spec import ModelSpec, ModuleSpec
from outsize.planner.footprint import is_compactable, packing_of, tensor_resident_bytes
from outsize.planner.plan import Weights

# Share of the memory rate that a one-row matmul reaches, where the machine says nothing. CPU: the compiled kernels at
# 44 to 50 of 45 to 50 GB/s (4096 x 16384, two threads); torch alone would reach 0.31 of it in bfloat16, 0.78 in float16
# and 0.47 in float32, and unpack what is packed for every use. GPU: cuBLAS reaches some nine tenths of the HBM rate;
# torch unpacks what is packed for every use, in 11 (int8) and 32 (int4) times its bytes of traffic.
COMPACT = "bf12"
CPU_SHARE = {COMPACT: 0.6, "bfloat16": 0.9, "float16": 0.9, "float32": 0.9, "int8": 0.9, "int4": 0.9}
GPU_SHARE = {"int8": 0.08, "int4": 0.03}
CPU_SHARE_OTHERS = 0.31
GPU_SHARE_OTHERS = 0.9
# Floating-point operations per byte of memory rate, where nobody says how fast a device multiplies: the low end of what
# CPUs with vector units (350 GFLOP/s beside 45 GB/s) and GPUs with matrix units (130 TFLOP/s beside 672 GB/s) do.
CPU_FLOPS_PER_BYTE = 4.0
GPU_FLOPS_PER_BYTE = 60.0
# transformers' small operations in one block: 20 ms for 32 blocks beside 100 ms of kernels on a CPU. On a GPU they are
# launches, which overlap with what was launched before.
BLOCK_OPERATIONS_S = 0.6e-3
# From the start of a load until the first block can compute, reading going on meanwhile: importing torch and
# transformers and building the model on `meta`, or building alone in a process that has them. Assumed: 3 to 6 s were
# seen on two cores with warm files, 8 s and more from a cold disk; building alone 0.5 to 0.9 s.
COLD_START_S = 4.5
WARM_START_S = 0.5
# Bringing bfloat16 weights into the 12-bit form on two cores. Assumed.
ENCODE_BYTES_PER_S = 3e9
# From the last byte of a streamed part to the thread that computes with it: Python's threads change hands within 5 ms.
# 2.0 to 3.0 ms were seen with the bundled model's parts of 0.4 MB on two cores; larger ones hide it behind reading.
HANDOVER_S = 2.5e-3
# Sampling and the generation loop, once a token.
TOKEN_OPERATIONS_S = 2e-3
# One hop of a token's hidden state from a device to another: a launch, a copy of some KiB, a wait.
HOP_S = 50e-6
# A look-up of a few rows of an embedding on the drive: one random direct read.
ROW_READ_S = 0.2e-3
# Times that decode touches the cache: a growing cache is read and written anew, then read by attention.
KV_TRAFFIC = 3


def decode_rate(device: Device, key: str) -> float:
    """Bytes of weights per second through a one-row matmul; ``key`` is a data type, ``int8`` or ``int4``.

    As measured, else the memory rate times the share that matmuls of that kind reach.
    """
    measured = device.matmul_bytes_per_s.get(key, 0.0)
    if measured:
        return measured
    if device.kind == "gpu" and not device.emulated:
        return device.bytes_per_s * GPU_SHARE.get(key, GPU_SHARE_OTHERS)
    return device.bytes_per_s * CPU_SHARE.get(key, CPU_SHARE_OTHERS)


def flop_rate(device: Device, key: str) -> float:
    """Floating-point operations per second of a large matmul.

    As measured for the key; packed weights are unpacked and multiplied as 16-bit floats; else the least of what is
    known; else a multiple of the memory rate.
    """
    names = (key, "bfloat16", "float16") if key in ("int8", "int4") else (key,)
    known = next((device.flops[name] for name in names if device.flops.get(name)), 0.0)
    if not known and device.flops:
        known = min(device.flops.values())
    if known:
        return known
    factor = GPU_FLOPS_PER_BYTE if device.kind == "gpu" and not device.emulated else CPU_FLOPS_PER_BYTE
    return device.bytes_per_s * factor


@dataclass(frozen=True, slots=True)
class Work:
    """What computing a module takes: per data type, bytes of weights read and elements multiplied by each token."""

    parts: tuple[tuple[str, int, int], ...]  # (key, bytes, elements in matmuls)
    block: bool

    @property
    def bytes(self) -> int:
        """Bytes of weights read per sweep."""
        return sum(part[1] for part in self.parts)


def is_head(spec: ModelSpec, module: ModuleSpec) -> bool:
    """Whether the module gives the logits: the head, or an embedding tied to one (then no head is listed)."""
    return module.role == "head" or (
        module.role == "embedding" and bool(module.tied) and not any(m.role == "head" for m in spec.modules)
    )


def is_lookup(spec: ModelSpec, module: ModuleSpec) -> bool:
    """Whether only rows of the module are read: an embedding that is not the head too."""
    return module.role == "embedding" and not is_head(spec, module)


def module_work(spec: ModelSpec, module: ModuleSpec, weights: Weights, *, compact: bool = False) -> Work:
    """The work of a module: nothing for a look-up; else every weight is read once and multiplied by every token.

    ``compact``: weights that have a lossless 12-bit form are read in that.
    """
    if is_lookup(spec, module):
        return Work((), block=False)
    head = is_head(spec, module)
    parts: dict[str, tuple[int, int]] = {}
    for tensor in module.tensors:
        packing = packing_of(module, tensor, weights)
        key = tensor.runtime if packing is None else packing.format
        size = tensor_resident_bytes(module, tensor, weights)
        if compact and is_compactable(module, tensor, weights):
            key, size = COMPACT, bf12_bytes(*tensor.shape)
        read, multiplied = parts.get(key, (0, 0))
        parts[key] = (read + size, multiplied + (tensor.elements if tensor.matmul or head else 0))
    return Work(tuple((key, *pair) for key, pair in parts.items()), block=module.role == "block")


def compute_s(work: Work, device: Device, tokens: int, kv_read_bytes: int) -> float:
    """Seconds to compute a module for ``tokens`` tokens in all: a roofline per data type, and the cache.

    ``sum over types of max(bytes / matmul rate, 2 * elements * tokens / FLOP rate) + 3 * cache bytes / memory rate``,
    plus the small operations of a block on the CPU, or at least them on a GPU. Attention's own multiplications are left
    out: at 512 tokens they are some 2 % of the rest.
    """
    seconds = KV_TRAFFIC * kv_read_bytes / device.bytes_per_s
    for key, read, elements in work.parts:
        seconds += max(read / decode_rate(device, key), 2 * elements * tokens / flop_rate(device, key))
    if not work.block:
        return seconds
    if device.kind == "gpu" and not device.emulated:
        return max(seconds, BLOCK_OPERATIONS_S)
    return seconds + BLOCK_OPERATIONS_S


def convert_s(converted_bytes: int, device: Device) -> float:
    """Seconds to turn streamed bytes into the runtime type, each sweep: read them and write them at the memory rate."""
    return 2 * converted_bytes / device.bytes_per_s


def encode_s(nbytes: int) -> float:
    """Seconds to bring bfloat16 weights into the lossless 12-bit form, once, at the load: ``bytes / 3 GB/s``."""
    return nbytes / ENCODE_BYTES_PER_S


def read_s(nbytes: int, disk: Device) -> float:
    """Seconds to read bytes from the drive: ``bytes / disk rate``."""
    return nbytes / disk.bytes_per_s


def load_s(nbytes: int, disk: Device, home: Device) -> float:
    """Seconds to bring bytes from the drive to where they rest: ``bytes / min(disk rate, link rate of a GPU)``."""
    rate = disk.bytes_per_s
    if home.link_bytes_per_s:
        rate = min(rate, home.link_bytes_per_s)
    return nbytes / rate


def hops_s(devices: list[str]) -> float:
    """Seconds that one sweep spends between devices: 50 us for each change, the way back to the start included."""
    return HOP_S * sum(a != b for a, b in zip(devices, devices[1:] + devices[:1], strict=True))
