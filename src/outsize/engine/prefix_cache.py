"""Caches that begin with another's: a prefix that many sequences share is computed once and used block by block.

The micro-batch of the prefix begins in the same sweep, right before those that share it, so in every block its keys and
values are there when they come.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from outsize.models.spec import ModelSpec
from outsize.models.tracing.cache_argument import cache_argument

MOVING_ROPE = ("dynamic", "longrope")  # rotary tables that depend on the longest sequence beside


def can_share_prefixes(model: Any, spec: ModelSpec) -> bool:
    """Whether all that a model remembers of earlier tokens is keys and values of every one of them, in plain layers."""
    if spec.encoder_decoder or moves_with_length(model) or cache_argument(model) is None:
        return False
    caches = [block.cache for block in spec.blocks]
    plain = all(c.per_token and not c.fixed and c.window is None and not c.cross_per_token for c in caches)
    layers = DynamicCache(config=model.config).layers
    return plain and len(layers) == len(caches) and all(type(layer) is DynamicLayer for layer in layers)


def moves_with_length(model: Any) -> bool:
    """Whether a sequence's positions depend on how long the others are that compute with it."""
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [rope.get("rope_type"), *(r.get("rope_type") for r in rope.values() if isinstance(r, dict))]
    return any(kind in MOVING_ROPE for kind in kinds)


def counts_padding(model: Any, spec: ModelSpec) -> bool:
    """Whether padding before a prompt changes what comes after it, although it is masked.

    It does where positions count it (BART's decoder), and where caches of a model's own cut tokens into windows from it
    on (DeepSeek-V4). Without positions among its inputs, a model leaves it out if it has biases by distance (BLOOM's
    ALiBi) or nothing but states, in blocks that see the mask (Mamba).
    """
    layers = DynamicCache(config=model.config).layers
    if any(type(layer).__module__ != DynamicLayer.__module__ for layer in layers):
        return True
    if "position_ids" in inspect.signature(model.forward).parameters:
        return False
    if any("alibi" in name for name in dir(model.base_model)):
        return False
    blocks = [model.get_submodule(block.name) for block in spec.blocks]
    masked = all("attention_mask" in inspect.signature(type(block).forward).parameters for block in blocks)
    return not masked or any(block.cache.per_token for block in spec.blocks)


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One block's keys and values, after those of a prefix that others share too.

    ``rows``: for each sequence its row in the prefix; None where that is one row for all. ``keep``: whether
    its own are kept for later passes or for those that continue it; ``users``: layers after which they are dropped.
    """

    keys: torch.Tensor | None
    values: torch.Tensor | None

    def __init__(self, shared: PrefixLayer | None, length: int, rows: torch.Tensor | None, *, keep: bool) -> None:
        super().__init__()
        self.shared = shared
        self.length = length  # of the prefix
        self.rows = rows
        self.keep = keep
        self.users = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds new tokens, and gives all: [sequences, heads, prefix + own, width] twice."""
        keys, values = key_states, value_states
        if self.keep:
            keys, values = super().update(key_states, value_states)
        if self.shared is None:
            return keys, values
        before = self.shared.pieces(self.rows, keys.shape[0])
        if not self.keep:
            self.shared.was_used()
        return torch.cat([*(k for k, _ in before), keys], dim=-2), torch.cat([*(v for _, v in before), values], dim=-2)

    def pieces(self, rows: torch.Tensor | None, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Its keys and values from the first token on, for ``count`` sequences: views where all share one row."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            raise RuntimeError("the prefix that this sequence shares was not computed")

        def chosen(states: torch.Tensor) -> torch.Tensor:
            return states.expand(count, -1, -1, -1) if rows is None else states[rows.to(states.device)]

        above = self.rows if self.rows is None or rows is None else self.rows[rows]
        earlier = [] if self.shared is None else self.shared.pieces(above, count)
        return [*earlier, (chosen(keys), chosen(values))]

    def was_used(self) -> None:
        """Counts one user as done, and drops what nobody will use again."""
        self.users -= 1
        if not self.users:
            self.keys = self.values = None

    def get_seq_length(self) -> int:
        """Tokens before the next one, the prefix included."""
        return self.length + int(super().get_seq_length())


def prefix_cache(
    layers: int, shared: DynamicCache | None = None, length: int = 0, rows: list[int] | None = None, *, keep: bool
) -> DynamicCache:
    """A cache after a shared prefix of ``length`` tokens; without one, the cache of a prefix itself."""
    index = None if rows is None else torch.tensor(rows)
    cache = DynamicCache()
    above: Any = [None] * layers if shared is None else shared.layers
    cache.layers = [PrefixLayer(layer, length, index, keep=keep) for layer in above]
    cache.layer_class_to_replicate = None
    return cache


def drop_after(cache: DynamicCache, users: int) -> None:
    """Says how many micro-batches share a cache once each, in passes of their own: then its layers are dropped."""
    for layer in cache.layers:
        layer.users = users
