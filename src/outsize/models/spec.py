"""What is true of a model before any decision: its tensors, its modules, and what a token costs in cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Literal

from outsize.models.dtypes import dtype_bytes
from outsize.models.formats import Packing

Role = Literal["embedding", "block", "experts", "head", "other"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file: where its bytes lie. Offsets count from the start of the file.

    ``strides``, in elements, of a view that is not row-major and without gaps (PyTorch saves those as they are); None
    for all others. ``nbytes`` of such a view is its span: from its first element to its last, whatever lies between.
    """

    name: str
    dtype: str  # torch's name: "bfloat16", "float32", "int32", ...
    shape: tuple[int, ...]
    file: str  # relative to the model's folder
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One parameter or persistent buffer of the transformers model, tied ones once.

    A streamed block need not be in memory as a whole: ``part`` counts its parts in the order in which they compute,
    each done with before the next begins. ``packing``: how the checkpoint has it quantised, if it has; ``stored`` and
    ``runtime`` are the scales' data types then (of fp8 and mxfp4, what it is multiplied out to: scales stay as they
    are), and ``shape`` that of the weight itself, [out, in]. ``span``: bytes that reading it takes where it is stored
    as a strided view, which may be more or fewer than its elements'; else 0.
    ``matrices``: in how many tensors the checkpoint has it: routed experts [experts, out, in] are stored one by one.
    """

    name: str  # as in model.named_parameters(): "model.decoder.layers.0.fc1.weight"
    shape: tuple[int, ...]
    stored: str  # data type in the checkpoint
    runtime: str  # data type that the forward pass works on
    matmul: bool  # the weight of a Linear layer (what int8 and int4 quantise)
    part: int = 0
    packing: Packing | None = None
    span: int = 0
    matrices: int = 1

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint: elements x bytes of the stored type; packed: integers, scales and a shape.

        Of a strided view, its span.
        """
        if self.packing is not None:
            return (self.span or self.packing.nbytes(self.shape)) + self.matrices * self.packing.file_bytes
        return self.span or self.elements * dtype_bytes(self.stored)

    @property
    def runtime_bytes(self) -> int:
        """Bytes in memory: elements x bytes of the type the forward pass works on; packed: integers and scales."""
        if self.packing is not None:
            return self.packing.nbytes(self.shape, self.runtime)
        return self.elements * dtype_bytes(self.runtime)


@dataclass(frozen=True, slots=True)
class Origin:
    """Which tensors of the checkpoint a parameter is made from; ``copies``: by more than looking at their bytes."""

    names: tuple[str, ...]
    copies: bool = False


NO_ORIGINS: Mapping[str, Origin] = MappingProxyType({})


NO_USES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What one sequence adds to a module's cache, as measured on transformers' own cache class.

    bytes for a context of n tokens: ``fixed + per_token * min(n, window or n) + cross_per_token * encoder tokens``.
    """

    per_token: int = 0
    window: int | None = None  # tokens after which a sliding window stops growing
    cross_per_token: int = 0  # encoder-decoder: per encoder token
    fixed: int = 0  # states that do not grow

    def bytes_for(self, context: int, encoder_tokens: int = 0) -> int:
        """Cache bytes of one sequence with ``context`` tokens (and ``encoder_tokens`` in the encoder)."""
        tokens = context if self.window is None else min(context, self.window)
        return self.fixed + self.per_token * tokens + self.cross_per_token * encoder_tokens


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """One unit of placement: a block, its routed experts, or a module outside the blocks that owns weights.

    ``experts``: how many routed experts it has, of which each token uses ``per_token``; 0 in all other modules.
    ``stack`` tells encoder blocks from decoder blocks ("" where there is one stack). ``tied`` names the modules that
    use the same weights (an embedding under its head): their bytes are counted here, once.
    """

    name: str
    role: Role
    stack: str
    tensors: tuple[TensorSpec, ...]
    cache: CacheSpec
    tied: tuple[str, ...] = ()
    experts: int = 0
    per_token: int = 0

    @property
    def parts(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """The tensors by part, in the order in which the parts compute; one part where the module cannot be divided."""
        numbers = sorted({t.part for t in self.tensors})
        return tuple(tuple(t for t in self.tensors if t.part == number) for number in numbers)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint."""
        return sum(t.stored_bytes for t in self.tensors)

    @property
    def runtime_bytes(self) -> int:
        """Bytes in memory while the module computes."""
        return sum(t.runtime_bytes for t in self.tensors)


@dataclass(frozen=True, slots=True)
class WorkspaceSpec:
    """Peak bytes of activations of one sequence of n tokens, weights and cache left out: base + linear*n + square*n*n.

    Measured on ``meta`` by following the life of every intermediate tensor through forward passes that keep a cache and
    that keep none: the larger counts.
    """

    base: int
    linear: int
    square: float

    def bytes_for(self, batch: int, tokens: int) -> int:
        """Peak bytes for ``batch`` sequences of ``tokens`` new tokens each."""
        return batch * int(self.base + self.linear * tokens + self.square * tokens * tokens)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model, as far as planning needs it. Modules stand in the order in which the forward pass uses them."""

    id: str
    architecture: str  # transformers' class: "OPTForCausalLM"
    model_type: str  # config.model_type: "opt"
    encoder_decoder: bool
    max_positions: int | None
    vocab_size: int
    modules: tuple[ModuleSpec, ...]
    workspace: WorkspaceSpec
    buffer_bytes: int = 0  # non-persistent buffers (rotary tables), made at load, never stored
    dtype: str = ""  # the type most parameters are stored in
    origins: Mapping[str, Origin] = field(default_factory=lambda: NO_ORIGINS)  # by parameter; none for shipped specs
    resting: WorkspaceSpec | None = None  # most bytes that live when a module with weights begins; None: not measured
    # By module, how often each of its routed experts was used in earlier runs; no part of what the model is.
    uses: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: NO_USES, compare=False)

    @property
    def parameters(self) -> int:
        """Number of parameters, tied weights once."""
        return sum(t.elements for m in self.modules for t in m.tensors)

    @property
    def active_parameters(self) -> int:
        """Number of parameters that a token uses: of routed experts, those that it is sent to."""
        counts = ((sum(t.elements for t in m.tensors), m) for m in self.modules)
        return sum(count * m.per_token // m.experts if m.experts else count for count, m in counts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the native checkpoint's weights, tied weights once."""
        return sum(m.stored_bytes for m in self.modules)

    @property
    def formats(self) -> frozenset[str]:
        """The formats of the checkpoint's own quantised weights: int8, int4, fp8, mxfp4; none for a native one."""
        return frozenset(t.packing.format for m in self.modules for t in m.tensors if t.packing is not None)

    @property
    def blocks(self) -> tuple[ModuleSpec, ...]:
        """The repeated layers."""
        return tuple(m for m in self.modules if m.role == "block")

    @property
    def kv_bytes_per_token(self) -> int:
        """Cache bytes per sequence and token that the runtime allocates while no window is full, over all modules."""
        return sum(m.cache.per_token for m in self.modules)
