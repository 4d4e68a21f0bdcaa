"""A forward pass on ``meta``, watched: the order of modules, the cache per token, the peak of live activations."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.experimental._config
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves
from transformers import EncoderDecoderCache, PreTrainedModel

from outsize.errors import UnsupportedModel
from outsize.models.spec import CacheSpec, WorkspaceSpec
from outsize.models.tracing.cache_argument import cache_in
from outsize.models.tracing.inputs import inputs_of
from outsize.models.tracing.spans import Turns

# Lengths of the rehearsed prompts: three points fix a polynomial of the second degree, and they are short enough for
# every position table and long enough for integer division not to matter.
LENGTHS = (8, 40, 104)

# How a number leaves a tensor. Under inference_mode composite operations arrive themselves, not what they consist of.
_ATEN = torch.ops.aten
QUESTIONS = frozenset({_ATEN._local_scalar_dense.default, _ATEN.item.default, _ATEN.is_nonzero.default})
ALL_NONZERO: Any = torch.fx.experimental._config  # its option for masks on ``meta``: they select all that they may
GROUPED = getattr(_ATEN, "_grouped_mm", None)  # multiplication by several experts' matrices; not in every torch

Watched = tuple[str, tuple[nn.Module, ...], str, str]  # name, modules, role, stack


@dataclass(frozen=True, slots=True)
class Measured:
    """What one model's forward pass showed. ``per_token``: routed experts that a token uses, by module."""

    order: tuple[str, ...]
    cache: dict[str, CacheSpec]
    workspace: WorkspaceSpec
    resting: WorkspaceSpec
    turns: Turns
    per_token: Mapping[str, int]


def measure(model: PreTrainedModel, units: Sequence[Watched]) -> Measured:
    """Runs ``model`` (all weights on ``meta``) on prompts of a few lengths.

    ``units``: name, modules, role and stack of each unit of placement. Raises UnsupportedModel where the model cannot
    run on shapes alone.
    """
    on_meta = _meta_buffers(model)
    first: Exception | None = None
    try:
        for inputs in zip(*(inputs_of(model, length) for length in LENGTHS), strict=True):
            try:
                with closing(Turns(model)) as turns:
                    passes = [_forward(model, inputs[0], units, turns)]
                passes += [_forward(model, longer, units) for longer in inputs[1:]]
                bare = _without_cache(model, inputs, units)
                break
            except Exception as error:  # noqa: BLE001  a model may want other inputs in as many ways as there are models
                first = first or error
        else:
            what = f"{type(model).__name__} cannot be measured on shapes alone"
            raise UnsupportedModel(f"{what}: {type(first).__name__}: {first}") from first
    finally:
        for module, name, buffer in on_meta:
            module._buffers[name] = buffer
    order = passes[0].order
    missing = tuple(name for name, *_ in units if name not in order)
    decoders = [name for name, _, role, stack in units if role == "block" and stack != "encoder"]
    cache = {name: CacheSpec() for name, *_ in units}
    layers = [_cache_spec(sizes) for sizes in zip(*(p.cache for p in passes), strict=True)]
    if len(layers) == len(decoders):
        cache.update(zip(decoders, layers, strict=True))
    elif layers:  # layers that share caches, or that are no blocks: the sum is what counts, on the first block
        cache[next(iter(decoders), units[0][0])] = _sum(layers)
    peaks = [max(kept.peak, passed.peak) for kept, passed in zip(passes, bare, strict=True)]
    return Measured((*order, *missing), cache, _fit(peaks), _fit([p.resting for p in bare]), turns, passes[0].per_token)


@dataclass(frozen=True, slots=True)
class _Pass:
    order: tuple[str, ...]
    cache: tuple[tuple[int, int, int | None], ...]  # own bytes, cross bytes, window; per layer
    peak: int
    resting: int  # most bytes that lived when a module with weights began
    per_token: Mapping[str, int]  # routed experts that a token uses


class _Numbers(TorchFunctionMode):
    """Lets code go on on ``meta`` that takes numbers out of tensors: they are 0.

    As part of a name (of an expert), or as the sizes of the parts of a tensor, of which the first is then all of it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See TorchFunctionMode."""
        kwargs = kwargs or {}
        if func is torch.Tensor.__format__ and args[0].is_meta:
            return format(0, *args[1:])
        if func is torch.Tensor.tolist and args[0].is_meta and args[0].dim() == 1:
            return [0] * len(args[0])
        if func is torch.Tensor.split and args[0].is_meta and isinstance(args[1], list) and not any(args[1]):
            whole = args[0].shape[kwargs.get("dim", 0)]
            args = (args[0], [whole, *args[1][1:]], *args[2:])
        return func(*args, **kwargs)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that live at the same time, weights and buffers left out.

    ``moments``: serial number and bytes of each storage as it comes (above 0) and goes (below).
    """

    def __init__(self, known: set[int], turns: Turns | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.turns = turns
        self._made: dict[Any, tuple[torch.Size, tuple[int, ...], torch.dtype]] = {}
        self.known, self.live = known, 0
        self.seen: dict[int, tuple[int, int]] = {}  # storage -> serial number, bytes
        self.moments: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in QUESTIONS and args[0].is_meta:
            return 0  # a question about data (is any token padding?): the plain answer is no
        if self.turns is not None:
            self.turns.note(func, args, kwargs)
        result = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def peak(self, kept: Sequence[Any]) -> int:
        """Most bytes that lived at a time, without the storages in ``kept``: what a cache holds at the end."""
        left_out = {self.seen[storage._cdata][0] for storage in kept if storage._cdata in self.seen}
        now = most = 0
        for serial, change in self.moments:
            now += 0 if serial in left_out else change
            most = max(most, now)
        return most

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation on ``meta``, or, where the same was asked of another block, what that gave: shapes alone.

        Many operations reach ``meta`` through Python; blocks are alike, so most of a model's are asked once.
        """
        key = _question(func, args, kwargs)
        if key is not None and key in self._made:
            shape, strides, dtype = self._made[key]
            return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        if GROUPED is not None and func is GROUPED.default:
            # On ``meta`` it demands bfloat16, as GPUs do; CPUs take any floats.
            rows, matrices = args[0], args[1]  # [rows, in], [experts, in, out]
            return rows.new_empty(rows.shape[0], matrices.shape[-1])
        result = func(*args, **kwargs)
        if key is not None and isinstance(result, torch.Tensor) and result.is_meta:
            self._made[key] = (result.shape, result.stride(), result.dtype)
        return result

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or key in self.known:
            return
        self.seen[key] = (len(self.moments), size)
        self.moments.append((len(self.moments), size))
        self.live += size
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        serial, size = self.seen.pop(key)
        self.moments.append((serial, -size))
        self.live -= size


def _question(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What determines the shape of an operation's result, or None where the result is not new or not on ``meta``."""
    if func._schema.is_mutable or any(value.alias_info is not None for value in func._schema.returns):
        return None
    leaves, shape = tree_flatten((args, kwargs))
    if any(isinstance(leaf, torch.Tensor) and not leaf.is_meta for leaf in leaves):
        return None
    key = (func, str(shape), *((t.shape, t.stride(), t.dtype) if isinstance(t, torch.Tensor) else t for t in leaves))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _without_cache(
    model: PreTrainedModel, inputs: Sequence[Mapping[str, Any]], units: Sequence[Watched]
) -> list[_Pass]:
    """Passes that keep no cache; with one where transformers' code computes with one alone (xLSTM in bfloat16)."""
    try:
        return [_forward(model, each, units, cached=False) for each in inputs]
    except Exception:  # noqa: BLE001  whatever it is, the same pass with a cache went through
        return [_forward(model, each, units, resting=True) for each in inputs]


def _forward(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    units: Sequence[Watched],
    turns: Turns | None = None,
    *,
    cached: bool = True,
    resting: bool = False,
) -> _Pass:
    """One pass. ``resting``: look at what lives when a module begins, which is always done without a cache."""
    order: list[str] = []
    hooks = []
    lived = [0]
    per_token: dict[str, int] = {}
    for name, modules, role, _ in units:
        if role == "experts":

            def count(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                chosen = (*args, *kwargs.values())[1]  # [tokens, k]
                per_token[name] = chosen.shape[-1]

            hooks.append(modules[0].register_forward_pre_hook(count, with_kwargs=True))
        last = modules[:1] if role == "head" else modules  # tied: the head's turn is when the head itself runs
        for module in last:

            def note(*_: Any, name: str = name) -> None:
                if name not in order:
                    order.append(name)

            hooks.append(module.register_forward_pre_hook(note))
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    live = _LiveBytes(known, turns)
    hooks += [
        module.register_forward_pre_hook(lambda *_: lived.append(live.live))
        for module in (model.modules() if resting or not cached else ())
        if any(weight is not None for weight in module._parameters.values())
    ]
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs = {**inputs, "use_cache": cached}
    try:
        with torch.inference_mode(), live, _Numbers(), ALL_NONZERO.patch(meta_nonzero_assume_all_nonzero=True):
            out = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    held = cache_in(out)
    return _Pass(tuple(order), tuple(_layer_bytes(held)), live.peak(_storages(held)), max(lived), per_token)


def _layers(cache: Any) -> list[Any]:
    if cache is None:
        return []
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(getattr(cache, "layers", [cache]))  # one of another kind is counted as a whole


def _storages(cache: Any) -> list[Any]:
    """What a cache keeps alive, storage by storage."""
    leaves = (leaf for layer in _layers(cache) for leaf in tree_leaves(vars(layer)))
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _layer_bytes(cache: Any) -> list[tuple[int, int, int | None]]:
    if cache is None:
        return []
    if isinstance(cache, EncoderDecoderCache):
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        return [(_bytes(a), _bytes(b), _window(a)) for a, b in zip(own, cross, strict=True)]
    return [(_bytes(layer), 0, _window(layer)) for layer in _layers(cache)]


def _bytes(layer: Any) -> int:
    """Bytes that a layer keeps alive: a full window is a view of one token more."""
    return sum(t.untyped_storage().nbytes() for t in tree_leaves(vars(layer)) if isinstance(t, torch.Tensor))


def _window(layer: Any) -> int | None:
    return getattr(layer, "sliding_window", None) if getattr(layer, "is_sliding", False) else None


def _cache_spec(sizes: tuple[tuple[int, int, int | None], ...]) -> CacheSpec:
    (own, cross, window), (own2, cross2, _) = sizes[0], sizes[1]
    span = LENGTHS[1] - LENGTHS[0]
    per_token, per_cross = (own2 - own) // span, (cross2 - cross) // span
    return CacheSpec(per_token, window, per_cross, own + cross - (per_token + per_cross) * LENGTHS[0])


def _sum(layers: Sequence[CacheSpec]) -> CacheSpec:
    return CacheSpec(
        per_token=sum(layer.per_token for layer in layers),
        cross_per_token=sum(layer.cross_per_token for layer in layers),
        fixed=sum(layer.fixed for layer in layers),
    )


def _fit(peaks: Sequence[int]) -> WorkspaceSpec:
    """base + linear*n + square*n*n through the three measured points (Newton's divided differences)."""
    (a, b, c), (pa, pb, pc) = LENGTHS, peaks
    first, second = (pb - pa) / (b - a), (pc - pb) / (c - b)
    square = (second - first) / (c - a)
    linear = first - square * (a + b)
    return WorkspaceSpec(base=round(pa - linear * a - square * a * a), linear=round(linear), square=square)


def _meta_buffers(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Puts the model's real buffers (rotary tables) on ``meta`` and returns them, to be put back."""
    real = []
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                real.append((module, name, buffer))
                module._buffers[name] = buffer.to("meta")
    return real
