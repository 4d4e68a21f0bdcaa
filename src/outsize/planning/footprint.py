"""Bytes: what weights, cache, workspace, buffers and the process itself take. One formula per function."""

from __future__ import annotations

from dataclasses import replace

from outsize.facts.bf12 import bf12_bytes
from outsize.facts.dtypes import dtype_bytes
from outsize.facts.machine import Device, Machine
from outsize.facts.model import CacheSpec, ModelSpec, ModuleSpec, TensorSpec
from outsize.planning.plan import Request, Weights

MIB = 1024**2
PAGE = 4096  # direct reads start and end on these boundaries
GROUP = 128  # weights that share one scale, along the input dimension
BITS = {"int8": 8, "int4": 4}
COMPACT_SHARE = 0.9  # of its bytes: a compact form that saves less is not worth making
MOST_INPUTS = 65536  # of a row in the compact form
SHAPE_BYTES = 16  # `weight_shape`: two int64 beside every packed weight

# Python, torch 2.13 and transformers 5.23: 340 to 375 MiB beyond weights, cache, ring and workspace at the peak of
# short generations (VmHWM of /proc/self/status; Llama, OPT and T5 shapes in three data types), 435 MiB at batch 4 with
# prompts of 512: a used heap has holes, in proportion to the workspace.
PROCESS_BYTES = 420 * MIB
HEAP_SHARE = 0.5
# A tokenizer in memory: text, merges and tables, some hundred bytes for each entry of the vocabulary. Assumed.
TOKENIZER_BYTES = 512
# A CUDA context with cuBLAS' workspace. Assumed: 400 to 550 MiB are usual for the drivers and libraries of 2026.
CUDA_CONTEXT_BYTES = 512 * MIB
# Page-locked buffers between the drive and a GPU, while its weights are loaded: 8 of 8 MiB.
STAGING_BYTES = 64 * MIB
# Kept free where nobody stated a budget: other processes grow, and allocators round up.
RAM_MARGIN = 0.04
GPU_MARGIN = 0.03


def is_quantised(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> bool:
    """Only weights of Linear layers inside blocks are quantised; embeddings, head and norms stay native."""
    return weights != "native" and module.role == "block" and tensor.matmul


def packed_bytes(tensor: TensorSpec, weights: Weights) -> int:
    """Bytes of a group-quantised weight of shape [..., out, in]: words + scales + shape.

    ``rows * ceil(in * bits / 32) * 4 + rows * ceil(in / 128) * bytes(scale) + 16`` with one scale, in the stored type,
    per group of 128. Source: compressed-tensors' ``pack-quantized`` format.
    """
    inputs = tensor.shape[-1]
    rows = tensor.elements // inputs
    words = -(-inputs * BITS[weights] // 32)
    groups = -(-inputs // GROUP)
    return rows * (words * 4 + groups * dtype_bytes(tensor.stored)) + SHAPE_BYTES


def tensor_rest_bytes(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> int:
    """Bytes of one tensor in the files: packed where quantised, else elements x bytes of the stored type."""
    return packed_bytes(tensor, weights) if is_quantised(module, tensor, weights) else tensor.stored_bytes


def rest_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a module in the files, which is what streaming reads: the sum over its tensors."""
    return sum(tensor_rest_bytes(module, t, weights) for t in module.tensors)


def resident_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a module in memory: packed where quantised, else elements x bytes of the runtime type."""
    return sum(
        packed_bytes(t, weights) if is_quantised(module, t, weights) else t.runtime_bytes for t in module.tensors
    )


def is_compactable(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> bool:
    """Whether RAM may hold the tensor in 12 bits an element: bfloat16 weights of Linear layers inside blocks."""
    if module.role != "block" or not tensor.matmul or is_quantised(module, tensor, weights):
        return False
    if tensor.stored != "bfloat16" or tensor.runtime != "bfloat16" or tensor.shape[-1] > MOST_INPUTS:
        return False
    return bf12_bytes(*tensor.shape) < COMPACT_SHARE * tensor.runtime_bytes


def forms(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> tuple[int, int, int]:
    """Bytes of a tensor in the files, in RAM, and in RAM where that is held in the compact form."""
    rest = tensor_rest_bytes(module, tensor, weights)
    held = packed_bytes(tensor, weights) if is_quantised(module, tensor, weights) else tensor.runtime_bytes
    return rest, held, bf12_bytes(*tensor.shape) if is_compactable(module, tensor, weights) else held


def compact_bytes(module: ModuleSpec, weights: Weights) -> int | None:
    """Bytes of a module in RAM with all in the compact form that has one; None where nothing has."""
    if not any(is_compactable(module, t, weights) for t in module.tensors):
        return None
    return sum(forms(module, t, weights)[2] for t in module.tensors)


def extent_count(module: ModuleSpec, weights: Weights) -> int:
    """Most byte ranges a module is read in: one per tensor, three per quantised weight (words, scales, shape)."""
    return sum(3 if is_quantised(module, t, weights) else 1 for t in module.tensors)


def slack_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes lost because direct reads start and end on pages: ``2 * 4096`` per byte range."""
    return 2 * PAGE * extent_count(module, weights)


def converted_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of those tensors whose runtime type is not the stored one: streaming needs a place to convert them to."""
    return sum(
        t.runtime_bytes for t in module.tensors if t.stored != t.runtime and not is_quantised(module, t, weights)
    )


def slot_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a ring slot that takes any part of the module: file bytes, slack of direct reads, what is converted."""
    parts = [replace(module, tensors=tensors) for tensors in module.parts]
    return max(
        (rest_bytes(p, weights) + slack_bytes(p, weights) + converted_bytes(p, weights) for p in parts), default=0
    )


def prompt_tokens(request: Request) -> int:
    """Tokens of one prompt: never more than the context."""
    return min(request.prompt, request.context)


def kv_bytes(cache: CacheSpec, request: Request) -> int:
    """Cache bytes of one module: batch x bytes of one sequence with a full context.

    For an encoder-decoder model the encoder is taken to be as long as the context too: an upper bound.
    """
    return request.batch * cache.bytes_for(request.context, encoder_tokens=request.context)


def workspace_bytes(spec: ModelSpec, request: Request) -> int:
    """Peak bytes of activations on a device that computes: the prefill's, the model's buffers, and one cache copy.

    The copy is of the largest module's cache: a growing cache is concatenated anew, old and new side by side.
    """
    copy = max((kv_bytes(m.cache, request) for m in spec.modules), default=0)
    return spec.workspace.bytes_for(request.batch, prompt_tokens(request)) + spec.buffer_bytes + copy


def ram_overhead_bytes(spec: ModelSpec, machine: Machine, workspace: int) -> int:
    """Bytes of the process that are none of the others: ``420 MiB + 512 x vocabulary + workspace / 2``.

    Python, torch and transformers; the tokenizer; holes in the heap. And staging buffers if a GPU is used.
    """
    staged = any(not gpu.emulated for gpu in machine.gpus)
    own = PROCESS_BYTES + TOKENIZER_BYTES * spec.vocab_size + int(HEAP_SHARE * workspace)
    return own + (STAGING_BYTES if staged else 0)


def gpu_overhead_bytes(gpu: Device) -> int:
    """Bytes of a CUDA context; an emulated GPU has none."""
    return 0 if gpu.emulated else CUDA_CONTEXT_BYTES


def ram_capacity_bytes(machine: Machine, request: Request) -> int:
    """Bytes of RAM the process may take: the budget, or what is free less the margin; never more than is free."""
    free = machine.ram.free_bytes
    return min(free, request.ram_budget) if request.ram_budget is not None else int(free * (1 - RAM_MARGIN))


def gpu_capacity_bytes(machine: Machine, index: int, request: Request) -> int:
    """Bytes of the GPU of that index that may be used: its budget, or what is free less the margin (0 if emulated)."""
    gpu = machine.gpus[index]
    if index < len(request.gpu_budgets):
        return min(gpu.free_bytes, request.gpu_budgets[index])
    return gpu.free_bytes if gpu.emulated else int(gpu.free_bytes * (1 - GPU_MARGIN))


def no_limit() -> int:
    """A bound no model reaches: for tiers whose weights nobody limited."""
    return 1 << 62


def weight_limit_bytes(request: Request, tier: str) -> int:
    """Most bytes of weights at rest in a tier, as requested; no bound where nothing was."""
    return dict(request.weight_limits).get(tier, no_limit())
