"""Keys and values that outlive their request: what the next one begins with is not computed again.

A new cache copies what it shares, which takes a thousandth of the time of computing it, so requests never wait for each
other's caches, and dropping one concerns nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache

from outsize.engine.kv_cache import give_room
from outsize.models.spec import ModelSpec
from outsize.planner.batches import MemoryUse, Shape, cache_bytes
from outsize.planner.plan import Plan
from outsize.planner.prefixes import common_tokens

LEAST = 16  # tokens that are worth keeping, or copying
MOST_KEPT = 256  # caches that are looked through for each request


@dataclass(slots=True, eq=False)
class Kept:
    """The cache of these tokens, in one piece for each layer."""

    tokens: tuple[int, ...]
    cache: Any
    use: MemoryUse


class KeptPrefixes:
    """Caches of earlier requests, at most ``budget`` bytes on all tiers together; the least recently used go first."""

    def __init__(self, model: Any, spec: ModelSpec, plan: Plan, budget: int) -> None:
        self._model, self._spec, self._plan = model, spec, plan
        self._budget = budget
        self._kept: list[Kept] = []  # the most recently used last
        self.hits = 0  # tokens that were not computed again

    @property
    def uses(self) -> list[MemoryUse]:
        """What they take."""
        return [kept.use for kept in self._kept]

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(_bytes(kept.use) for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def begin(
        self, tokens: tuple[int, ...], room: int, underway: Iterable[tuple[tuple[int, ...], Any]]
    ) -> tuple[Any, int]:
        """A cache with room for so many tokens, which holds the longest beginning of ``tokens`` that is known.

        At least one token is left to be computed. ``underway``: tokens and caches of requests that are being computed.
        """
        wanted = tokens[:-1]
        best, length, mine = None, LEAST - 1, None
        for kept in self._kept:
            common = common_tokens(wanted, kept.tokens)
            if common > length:
                best, length, mine = kept.cache, common, kept
        for others, cache in underway:
            common = min(common_tokens(wanted, others), held(cache))
            if common > length:
                best, length, mine = cache, common, None
        if mine is not None:
            self._kept.remove(mine)
            self._kept.append(mine)
        cache = DynamicCache(config=self._model.config)
        give_room(cache, room)
        if best is None:
            return cache, 0
        copy_into(cache, best, length)
        self.hits += length
        return cache, length

    def keep(self, tokens: tuple[int, ...], cache: Any) -> None:
        """Keeps as much of a cache as was computed of the tokens, in a copy without room for more."""
        length = min(held(cache), len(tokens))
        mine = tokens[:length]
        use = self._use(length)
        if length < LEAST or _bytes(use) > self._budget or any(k.tokens[:length] == mine for k in self._kept):
            return
        self._kept = [kept for kept in self._kept if mine[: len(kept.tokens)] != kept.tokens]
        while self._kept and (self.nbytes + _bytes(use) > self._budget or len(self._kept) >= MOST_KEPT):
            self.drop()
        copy = DynamicCache(config=self._model.config)
        copy_into(copy, cache, length)
        self._kept.append(Kept(mine, copy, use))

    def drop(self) -> bool:
        """Drops the least recently used; False where there is none."""
        return bool(self._kept) and self._kept.pop(0) is not None

    def _use(self, length: int) -> MemoryUse:
        shape = Shape(1, length, cached=True)
        tiers = dict.fromkeys(group.device for group in self._plan.groups)
        return MemoryUse(tuple((t, cache_bytes(self._spec, self._plan, shape, t)) for t in tiers), 0)


def held(cache: Any) -> int:
    """Tokens that every layer holds: a request that was ended in the middle of a sweep has more in the first ones."""
    return min((int(layer.get_seq_length()) for layer in cache.layers), default=0)


def copy_into(cache: Any, source: Any, length: int) -> None:
    """Copies the first tokens of another cache into an empty one."""
    for layer, other in zip(cache.layers, source.layers, strict=True):
        layer.update(other.keys[..., :length, :], other.values[..., :length, :])


def _bytes(use: MemoryUse) -> int:
    return sum(nbytes for _, nbytes in use.resting)
