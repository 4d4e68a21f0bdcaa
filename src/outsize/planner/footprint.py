"""Bytes: what weights, cache, workspace, buffers and the process itself take. One formula per function."""

from __future__ import annotations

from dataclasses import replace

from outsize.machine.machine import Device, Machine
from outsize.models.bf12_layout import MOST_INPUTS, bf12_bytes
from outsize.models.dtypes import dtype_bytes
from outsize.models.formats import Packing, packing_for
from outsize.models.spec import CacheSpec, ModelSpec, ModuleSpec, TensorSpec
from outsize.planner.plan import Request, Weights

MIB = 1024**2
PAGE = 4096  # direct reads start and end on these boundaries
BITS = {"int8": 8, "int4": 4}
BF12_SHARE = 0.9  # of its bytes: a 12-bit form that saves less is not worth making
# Most bytes that multiplying with a packed weight takes at a time to unpack it, temporaries included: kernels that
# multiply many rows, and those in plain torch, unpack tiles of it, as many rows as fit. No weight takes more than all
# of its elements do, in float32 and with two temporaries of that size.
UNPACKED_BYTES = 64 * MIB
UNPACKED_BYTES_PER_ELEMENT = 12

# Python, torch 2.13 and transformers 5.23: 340 to 375 MiB beyond weights, cache, ring and workspace at the peak of
# short generations (VmHWM of /proc/self/status; Llama, OPT and T5 shapes in three data types), 435 MiB at batch 4 with
# prompts of 512: a used heap has holes, in proportion to the workspace.
PROCESS_BYTES = 420 * MIB
HEAP_SHARE = 0.5
# What Triton adds to that: 70 MiB were measured (3.9.0, imported by torch on a machine without a GPU; docs/log.md).
TRITON_BYTES = 80 * MIB
# A tokenizer in memory: text, merges and tables, some hundred bytes for each entry of the vocabulary. Assumed.
TOKENIZER_BYTES = 512
# A CUDA context with cuBLAS' workspace. Assumed: 400 to 550 MiB are usual for the drivers and libraries of 2026.
CUDA_CONTEXT_BYTES = 512 * MIB
# Page-locked buffers between the drive and a GPU, while its weights are loaded: 8 of 8 MiB.
STAGING_BYTES = 64 * MIB
# The least that the cache of experts is given: what a drive reads in some hundredths of a second.
EXPERT_BYTES = 64 * MIB
# Kept free where nobody stated a budget: other processes grow, and allocators round up.
RAM_MARGIN = 0.04
GPU_MARGIN = 0.03


def packing_of(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> Packing | None:
    """How a tensor is packed: as the checkpoint has it, else as converting would; None where it stays as it is.

    Converted are weights of Linear layers inside blocks, and of experts; embeddings, head and norms stay native.
    """
    if tensor.packing is not None:
        return tensor.packing
    if weights == "native" or module.role not in ("block", "experts") or not tensor.matmul:
        return None
    return packing_for(BITS[weights], tensor.shape[-1], tensor.stored)


def tensor_rest_bytes(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> int:
    """Bytes of one tensor as it is read: integers and scales where packed, else elements x bytes of the stored type."""
    packing = packing_of(module, tensor, weights)
    if span := span_of(tensor, weights):
        return span
    return tensor.elements * dtype_bytes(tensor.stored) if packing is None else packing.nbytes(tensor.shape)


def span_of(tensor: TensorSpec, weights: Weights) -> int:
    """Bytes that reading a tensor takes where it is stored as a strided view; else 0, as in converted copies."""
    return tensor.span if weights == "native" or tensor.packing is not None else 0


def rest_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a module that streaming reads: the sum over its tensors."""
    return sum(tensor_rest_bytes(module, t, weights) for t in module.tensors)


def file_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a module on disk: what streaming reads, and the shapes that lie beside packed weights."""
    packings = ((t, packing_of(module, t, weights)) for t in module.tensors)
    beside = sum(t.matrices * packing.file_bytes for t, packing in packings if packing is not None)
    return rest_bytes(module, weights) + beside


def tensor_resident_bytes(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> int:
    """Bytes of one tensor in memory: packed, with scales of the runtime type, else elements x bytes of that."""
    packing = packing_of(module, tensor, weights)
    return tensor.runtime_bytes if packing is None else packing.nbytes(tensor.shape, tensor.runtime)


def resident_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a module in memory: the sum over its tensors."""
    return sum(tensor_resident_bytes(module, t, weights) for t in module.tensors)


def has_bf12(module: ModuleSpec, tensor: TensorSpec, weights: Weights) -> bool:
    """Whether RAM may hold the tensor in 12 bits an element: bfloat16 weights of Linear layers inside blocks."""
    if module.role != "block" or not tensor.matmul or packing_of(module, tensor, weights) is not None:
        return False
    if tensor.stored != "bfloat16" or tensor.runtime != "bfloat16" or tensor.shape[-1] > MOST_INPUTS:
        return False
    return bf12_bytes(*tensor.shape) < BF12_SHARE * tensor.runtime_bytes


def forms(module: ModuleSpec, tensor: TensorSpec, weights: Weights, *, bf12: bool = False) -> tuple[int, int, int]:
    """Bytes of a tensor in the files, in RAM and on a GPU. ``bf12``: in RAM in 12 bits, where it has that form."""
    held = tensor_resident_bytes(module, tensor, weights)
    encoded = bf12 and has_bf12(module, tensor, weights)
    return tensor_rest_bytes(module, tensor, weights), bf12_bytes(*tensor.shape) if encoded else held, held


def bf12_bytes_of(module: ModuleSpec, weights: Weights) -> int | None:
    """Bytes of a module in RAM with all in 12 bits that has that form; None where nothing has."""
    if not any(has_bf12(module, t, weights) for t in module.tensors):
        return None
    return sum(forms(module, t, weights, bf12=True)[1] for t in module.tensors)


def extent_count(module: ModuleSpec, weights: Weights) -> int:
    """Most byte ranges a module is read in: one per tensor, two per packed weight, three with zero points.

    Experts are read one by one, whether they are stored so or not.
    """
    packings = ((max(t.matrices, module.experts), packing_of(module, t, weights)) for t in module.tensors)
    return sum(count * (1 if packing is None else 2 + packing.zero_points) for count, packing in packings)


def slack_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes lost because direct reads start and end on pages: ``2 * 4096`` per byte range."""
    return 2 * PAGE * extent_count(module, weights)


def converted_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of those tensors that are not used as they are stored: streaming needs a place to bring them to.

    That is another data type (of a packed weight, that of its scales), or a strided view that is laid out.
    """
    total = 0
    for tensor in module.tensors:
        if span_of(tensor, weights):
            total += tensor_resident_bytes(module, tensor, weights)
        elif tensor.stored != tensor.runtime:
            packing = packing_of(module, tensor, weights)
            total += tensor.runtime_bytes if packing is None else packing.scale_bytes(tensor.shape, tensor.runtime)
    return total


def slot_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a ring slot that takes any part of the module: file bytes, slack of direct reads, what is converted."""
    parts = [replace(module, tensors=tensors) for tensors in module.parts]
    return max(
        (rest_bytes(p, weights) + slack_bytes(p, weights) + converted_bytes(p, weights) for p in parts), default=0
    )


def expert_slot_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of a slot of the cache that takes any expert of a module: file bytes and the slack of direct reads."""
    one = -(-rest_bytes(module, weights) // module.experts) + -(-slack_bytes(module, weights) // module.experts)
    return -(-one // PAGE) * PAGE


def least_expert_slots(experts: int, slot_bytes: int) -> int:
    """Slots below which the cache of experts has no room to read ahead: ``64 MiB``, two of them at least."""
    return min(max(-(-EXPERT_BYTES // slot_bytes), 2), experts)


def expert_copy_bytes(module: ModuleSpec, weights: Weights) -> int:
    """Bytes of one expert that is not used as it is stored: it is brought to its runtime type for each use."""
    return -(-converted_bytes(module, weights) // module.experts)


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


def unpacked_bytes(spec: ModelSpec, weights: Weights) -> int:
    """Most bytes of packed weights that are unpacked at a time: ``min(64 MiB, 12 x elements of the largest)``."""
    packed = (t.elements for m in spec.modules for t in m.tensors if packing_of(m, t, weights) is not None)
    return min(UNPACKED_BYTES, UNPACKED_BYTES_PER_ELEMENT * max(packed, default=0))


def ram_overhead_bytes(spec: ModelSpec, workspace: int, *, triton: bool = False) -> int:
    """Bytes of the process that are none of the others: ``420 MiB + 512 x vocabulary + workspace / 2``.

    Python, torch and transformers; the tokenizer; holes in the heap; 80 MiB more with Triton. Without the staging
    buffers of GPUs.
    """
    libraries = PROCESS_BYTES + (TRITON_BYTES if triton else 0)
    return libraries + TOKENIZER_BYTES * spec.vocab_size + int(HEAP_SHARE * workspace)


def staging_bytes(gpu: Device) -> int:
    """Bytes of RAM that loading weights to a GPU takes, for all GPUs together; an emulated one takes none."""
    return 0 if gpu.emulated else STAGING_BYTES


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
