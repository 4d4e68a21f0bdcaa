"""Rates for machines that nobody measured: one place for every constant, each rather too slow than too fast.

Every figure that comes from here is marked assumed on its device, until ``outsize probe`` replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ALL_RATES = frozenset({"bytes_per_s", "link_bytes_per_s", "matmul_bytes_per_s", "flops"})

# One core asks for some 10 GB/s (its line-fill buffers over DRAM latency); a desktop's two channels of DDR4-3200 give
# about 40 of their 51 GB/s. Two cores: 20 GB/s.
MEMORY_PER_CORE = 10e9
MEMORY_MOST = 40e9

# Sequential direct reads by the kind of drive: a PCIe 3 NVMe drive, SATA's 600 MB/s less protocol, outer tracks of a
# spinning disk, gigabit network storage with some caching. Unknown drives are nearly always virtual NVMe.
DISK = {"nvme": 2e9, "sata": 0.5e9, "spinning": 0.15e9, "network": 0.3e9, "": 2e9}

# What one-row matmuls get of the memory rate in the compiled kernels, with AVX2 or better, whatever type weights have:
# 0.85 to 1.0 of what reading alone got in the same minute (two threads, matrices of 4096 x 4096 to 4096 x 16384).
KERNEL_SHARE = 0.9
# Weight bytes per second and core in the compiled kernels where there is no AVX2: half of what two threads reached.
BASELINE_MATMUL = {"bfloat16": 1.8e9, "float16": 0.3e9, "float32": 2.4e9, "int8": 3.9e9, "int4": 2e9}
# The same in torch 2.13, by the best instruction set. The first row is half of what two threads reached on an AVX-512
# BF16 machine (4096 x 16384); the rows below are cautious fractions, since torch has no half-precision matmul there and
# converts as it goes. Packed weights are unpacked for every use.
TORCH_MATMUL = {
    "avx512_bf16": {"bfloat16": 7e9, "float16": 17e9, "float32": 10e9, "int8": 0.2e9, "int4": 0.1e9},
    "avx512f": {"bfloat16": 4e9, "float16": 8e9, "float32": 10e9, "int8": 0.2e9, "int4": 0.1e9},
    "": {"bfloat16": 2e9, "float16": 2e9, "float32": 8e9, "int8": 0.1e9, "int4": 0.05e9},
}
DESCRIBED = frozenset({"avx2"})  # instruction sets of a machine that somebody only describes

# Floating-point operations per second and core of many-row matmuls. With matrix units (AMX), two threads reached
# 350 GFLOP/s in bfloat16; the rest follows from vector width at some 2 GHz and half of the peak. Quantised weights are
# expanded to bfloat16 first.
CPU_FLOPS = {
    "amx_bf16": {"bfloat16": 175e9, "float16": 50e9, "float32": 60e9, "int8": 120e9, "int4": 120e9},
    "avx512_bf16": {"bfloat16": 90e9, "float16": 30e9, "float32": 60e9, "int8": 60e9, "int4": 60e9},
    "avx512f": {"bfloat16": 50e9, "float16": 20e9, "float32": 60e9, "int8": 40e9, "int4": 40e9},
    "": {"bfloat16": 10e9, "float16": 5e9, "float32": 30e9, "int8": 10e9, "int4": 10e9},
}

# GPUs: what one-row matmuls get of the HBM or GDDR rate, large matmuls of the sheet's FLOP rate, pinned copies of the
# link's (PCIe 3.0 x16: 12 of 15.75 GB/s). Packed weights: assumed for cards with up to 1 TB/s, whose memory the kernels
# keep busy with 8 (int8) and 6 (int4) GB/s for each multiprocessor. Those were measured on an H200.
GPU_MATMUL_SHARE = {"bfloat16": 0.8, "float16": 0.8, "float32": 0.8, "int8": 0.5, "int4": 0.35}
# What torch multiplies out for every use there, because no kernel reads it: some 25 and 60 bytes of traffic for a byte.
GPU_TORCH_SHARE = {"fp8": 0.04, "mxfp4": 0.015}
GPU_SHARE_OTHERS = 0.8
GPU_FLOPS_SHARE = 0.5
LINK_SHARE = 0.76
PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}  # bytes per second, by generation

# --- what the cost model assumes where a machine states no rate ---

# Share of the memory rate that a one-row matmul reaches, where the machine says nothing. CPU: the compiled kernels at
# 44 to 50 of 45 to 50 GB/s (4096 x 16384, two threads); torch alone would reach 0.31 of it in bfloat16, 0.78 in float16
# and 0.47 in float32, and unpack what is packed for every use.
CPU_SHARE = {"bf12": 0.6, "bfloat16": 0.9, "float16": 0.9, "float32": 0.9, "int8": 0.9, "int4": 0.9}
CPU_SHARE_OTHERS = 0.31
# Formats that nobody measured, on a CPU: another format, and the share of its rate. Assumed.
CPU_LIKE = {"fp8": ("int8", 0.6), "mxfp4": ("int4", 0.6)}
# Of bfloat16's rate in large matmuls, because 12 bits are expanded on the way: a prompt of 512 took 22.7 s for 15.8.
BF12_FLOPS_SHARE = 0.7
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
# 2.0 to 3.0 ms were seen with the bundled model's parts of 0.4 MB on two cores; larger ones hide it with reading.
HANDOVER_S = 2.5e-3
# Sampling and the generation loop, once a token.
TOKEN_OPERATIONS_S = 2e-3
# Sorting tokens by their experts and adding up what these give, once a layer: some twenty operations of torch.
EXPERTS_S = 0.2e-3
# One hop of a token's hidden state from a device to another: a launch, a copy of some KiB, a wait.
HOP_S = 50e-6
# A look-up of a few rows of an embedding on the drive: one random direct read.
ROW_READ_S = 0.2e-3
# Times that decode touches the cache: a growing cache is read and written anew, then read by attention.
KV_TRAFFIC = 3
# Times that a block's activations cross the memory: left out where nobody measured, as attention is.
ACTIVATION_TRAFFIC = 0.0


@dataclass(frozen=True, slots=True)
class GpuRates:
    """A GPU's figures as its maker prints them: bytes per second and dense FLOP/s with float32 sums.

    ``bfloat16`` is 0 where there are no such matrix units; matmuls then run at the float32 rate.
    """

    memory: float
    link: float
    float32: float
    float16: float
    bfloat16: float

    @property
    def link_bytes_per_s(self) -> float:
        """What copies from pinned memory get of the link."""
        return self.link * LINK_SHARE

    @property
    def matmul_bytes_per_s(self) -> Mapping[str, float]:
        """One-row matmuls read the weights and do little else, once these are unpacked."""
        return gpu_matmul(self.memory)

    @property
    def flops(self) -> Mapping[str, float]:
        """Sustained rates of large matmuls. Quantised weights are expanded to 16 bits first."""
        half = self.bfloat16 or self.float32
        sheet = {"bfloat16": half, "float16": self.float16, "float32": self.float32}
        sheet |= dict.fromkeys(("int8", "int4"), max(self.float16, half))
        return {dtype: rate * GPU_FLOPS_SHARE for dtype, rate in sheet.items()}


# An unknown GPU is taken for the slowest that people still use for this: some 300 GB/s, and PCIe 3.0 x16.
UNKNOWN_GPU = GpuRates(memory=300e9, link=15.75e9, float32=8e12, float16=30e12, bfloat16=0)


def gpu_matmul(memory: float) -> dict[str, float]:
    """Weight bytes per second of one-row matmuls on a GPU whose memory is as fast as that, per data type."""
    return {dtype: memory * share for dtype, share in GPU_MATMUL_SHARE.items()}


def memory_rate(cores: int) -> float:
    """Bytes per second that ``cores`` cores read from memory."""
    return min(MEMORY_PER_CORE * cores, MEMORY_MOST)


def cpu_matmul(
    cores: int, memory: float, features: frozenset[str] = DESCRIBED, *, compiled: bool = True
) -> dict[str, float]:
    """Weight bytes per second of one-row matmuls, per data type, never above the memory's rate.

    ``compiled``: in the compiled kernels; in torch otherwise.
    """
    if compiled and "avx2" in features:
        return dict.fromkeys(BASELINE_MATMUL, KERNEL_SHARE * memory)
    rates = BASELINE_MATMUL if compiled else _best(TORCH_MATMUL, features)
    return {dtype: min(rate * cores, memory) for dtype, rate in rates.items()}


def cpu_flops(cores: int, features: frozenset[str] = frozenset()) -> dict[str, float]:
    """Floating-point operations per second of many-row matmuls, per data type."""
    return {dtype: rate * cores for dtype, rate in _best(CPU_FLOPS, features).items()}


def _best(table: Mapping[str, dict[str, float]], features: frozenset[str]) -> dict[str, float]:
    return next(rates for feature, rates in table.items() if not feature or feature in features)
