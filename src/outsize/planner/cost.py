"""Seconds: what reading and computing a module costs on a device. One formula per function.

The rates come from the machine; where it does not state one, the shares below stand in for it and are marked assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from outsize.machine import rates
from outsize.machine.machine import Device, Overheads
from outsize.models.bf12_layout import bf12_bytes
from outsize.models.spec import ModelSpec, ModuleSpec, TensorSpec
from outsize.planner.footprint import has_bf12, packing_of, tensor_resident_bytes
from outsize.planner.plan import Weights
from outsize.planner.routing import touched
from outsize.planner.weight_group import PACKED

COLD_BYTES = 64 * 1024**2  # of a block's weights: with so many between them, small operations find no cache warm
FEW_ROWS = 16  # that the compiled kernels multiply with one reading of the weights
UNMEASURED = Overheads()


def decode_rate(device: Device, key: str) -> float:
    """Bytes of weights per second through a one-row matmul; ``key`` is a data type or a packed format.

    As measured, else the memory rate times the share that matmuls of that kind reach, or a share of another format's.
    """
    measured = device.matmul_bytes_per_s.get(key, 0.0)
    if measured:
        return measured
    if device.kind == "gpu" and not device.emulated:
        shares = rates.GPU_MATMUL_SHARE | rates.GPU_TORCH_SHARE
        return device.bytes_per_s * shares.get(key, rates.GPU_SHARE_OTHERS)
    if key in rates.CPU_LIKE:
        other, share = rates.CPU_LIKE[key]
        return share * decode_rate(device, other)
    return device.bytes_per_s * rates.CPU_SHARE.get(key, rates.CPU_SHARE_OTHERS)


def flop_rate(device: Device, key: str) -> float:
    """Floating-point operations per second of a large matmul.

    As measured for the key; packed weights are unpacked and multiplied as 16-bit floats (as int4 is, where their own
    format was not measured), 12-bit ones at a share of bfloat16's rate; else the least of what is known; else a
    multiple of the memory rate.
    """
    if key == "bf12" and not device.flops.get(key):
        return rates.BF12_FLOPS_SHARE * flop_rate(device, "bfloat16")
    names = (key, "int4", "bfloat16", "float16") if key in PACKED else (key,)
    known = next((device.flops[name] for name in names if device.flops.get(name)), 0.0)
    if not known and device.flops:
        known = min(device.flops.values())
    if known:
        return known
    factor = rates.GPU_FLOPS_PER_BYTE if device.kind == "gpu" and not device.emulated else rates.CPU_FLOPS_PER_BYTE
    return device.bytes_per_s * factor


@dataclass(frozen=True, slots=True)
class Work:
    """What computing a module takes: per data type, bytes of weights read and elements multiplied by each token.

    ``experts``: of all of them, of which each token uses ``per_token``; 0 for what every token uses whole.
    """

    parts: tuple[tuple[str, int, int], ...]  # (key, bytes, elements in matmuls)
    block: bool
    activation_bytes: int = 0  # most that a block holds of each token
    experts: int = 0
    per_token: int = 0

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


def untouched_by_decode(spec: ModelSpec) -> frozenset[int]:
    """Indexes of an encoder's modules: its blocks, and what stands between its first block and the decoder's first."""
    blocks = [i for i, module in enumerate(spec.modules) if module.role == "block"]
    if not spec.encoder_decoder or not blocks:
        return frozenset()
    first = next(i for i in blocks if spec.modules[i].stack == spec.modules[blocks[-1]].stack)
    return frozenset(i for i in range(blocks[0], first) if spec.modules[i].role in ("block", "other"))


def rate_key(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> str:
    """The key of the matmul rate of a tensor: its data type, or the format that it is packed in."""
    packing = packing_of(module, tensor, weights)
    return tensor.runtime if packing is None else packing.format


def module_work(spec: ModelSpec, module: ModuleSpec, weights: Weights, *, bf12: bool = False) -> Work:
    """The work of a module: nothing for a look-up; else every weight is read once and multiplied by every token.

    ``bf12``: weights that have a lossless 12-bit form are read in that.
    """
    if is_lookup(spec, module):
        return Work((), block=False)
    head = is_head(spec, module)
    parts: dict[str, tuple[int, int]] = {}
    for tensor in module.tensors:
        key, size = rate_key(module, tensor, weights), tensor_resident_bytes(module, tensor, weights)
        if bf12 and has_bf12(module, tensor, weights):
            key, size = "bf12", bf12_bytes(*tensor.shape)
        read, multiplied = parts.get(key, (0, 0))
        parts[key] = (read + size, multiplied + (tensor.elements if tensor.matmul or head else 0))
    block = module.role == "block"
    activations = int(spec.workspace.linear) if block else 0
    in_parts = tuple((key, *pair) for key, pair in parts.items())
    return Work(in_parts, block, activations, module.experts, module.per_token)


def compute_s(work: Work, device: Device, tokens: int, kv_read_bytes: int, overheads: Overheads = UNMEASURED) -> float:
    """Seconds to compute a module for ``tokens`` tokens in all: a roofline per data type, and the cache.

    ``sum over types of matmul_s + 3 * cache bytes / memory rate``, plus the small operations of a block on the CPU and
    the traffic of its activations, or at least the small operations on a GPU. Attention's own multiplications are left
    out: at 512 tokens they are some 2 % of the rest.
    """
    gpu = device.kind == "gpu" and not device.emulated
    seconds = overheads.kv_traffic * kv_read_bytes / device.bytes_per_s
    if work.experts:
        return seconds + _experts_s(work, device, tokens)
    for key, read, elements in work.parts:
        seconds += matmul_s(device, key, read, elements, tokens)
    if not work.block:
        return seconds
    if gpu:
        return max(seconds, rates.BLOCK_OPERATIONS_S)
    seconds += overheads.activation_traffic * work.activation_bytes * (tokens - 1) / device.bytes_per_s
    return seconds + block_s(work, overheads)


def _experts_s(work: Work, device: Device, tokens: int) -> float:
    """Seconds of a layer's experts: those that the tokens are sent to, each for its share of the tokens."""
    share = touched(work.experts, work.per_token, tokens)
    rows = tokens * work.per_token / (work.experts * share) if share else 0.0
    seconds = rates.EXPERTS_S
    for key, read, elements in work.parts:
        seconds += matmul_s(device, key, read * share, elements * share, rows)
    return seconds


def matmul_s(device: Device, key: str, read: float, elements: float, tokens: float) -> float:
    """Seconds of matmuls with weights of one type: ``max(bytes / matmul rate, 2 * elements * tokens / FLOP rate)``.

    Where it was measured, a few tokens take ``bytes / matmul rate + 2 * elements * (tokens - 1) / few-row rate``, and
    many at least ``elements / unpacking rate + 2 * elements * tokens / FLOP rate``: each matmul first lays its weights
    out anew.
    """
    one, few = read / decode_rate(device, key), device.few_rows_flops.get(key, 0.0)
    if few and tokens <= FEW_ROWS:
        return one + 2 * elements * (tokens - 1) / few
    unpack = device.unpack_per_s.get(key, 0.0)
    return max(one, (elements / unpack if unpack else 0.0) + 2 * elements * tokens / flop_rate(device, key))


def block_s(work: Work, overheads: Overheads) -> float:
    """Seconds of a block's small operations on the CPU: the interpreter's code and data leave the caches by and by.

    Between the two measured figures in proportion to the block's weights, up to 64 MiB of them.
    """
    cold = min(work.bytes / COLD_BYTES, 1.0)
    return overheads.small_block_s + cold * (overheads.block_s - overheads.small_block_s)


def convert_s(converted_bytes: int, device: Device) -> float:
    """Seconds to turn streamed bytes into the runtime type, each sweep: read them and write them at the memory rate."""
    return 2 * converted_bytes / device.bytes_per_s


def encode_s(nbytes: int, overheads: Overheads) -> float:
    """Seconds to bring bfloat16 weights into the lossless 12-bit form, once, at the load: ``bytes / 3 GB/s``."""
    return nbytes / overheads.encode_bytes_per_s


def read_s(nbytes: float, disk: Device, overheads: Overheads = UNMEASURED) -> float:
    """Seconds to read bytes from the drive while others compute: ``bytes / (share of the disk rate)``."""
    return nbytes / (overheads.stream_share * disk.bytes_per_s)


def load_s(nbytes: float, disk: Device, home: Device) -> float:
    """Seconds to bring bytes from the drive to where they rest: ``bytes / min(disk rate, link rate of a GPU)``."""
    rate = disk.bytes_per_s
    if home.link_bytes_per_s:
        rate = min(rate, home.link_bytes_per_s)
    return nbytes / rate


def hops_s(devices: list[str]) -> float:
    """Seconds that one sweep spends between devices: 50 us for each change, the way back to the start included."""
    return rates.HOP_S * sum(a != b for a, b in zip(devices, devices[1:] + devices[:1], strict=True))
