"""A cache with room: new keys and values are written after the old ones, which stay where they are.

transformers' own layer puts all of them together anew for every token, old and new side by side: the time of a copy,
twice the memory of a layer, and holes in the heap. Here a layer takes room for the planned context at once, of which
only what is written becomes resident.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

STEP = 256  # tokens by which room grows that turns out too small


class RoomLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [sequences, heads, tokens, width], at the beginning of rooms of their own.

    ``tokens``: for which room is taken at first. Whatever replaces its keys or values (beams that change places,
    sequences that leave) takes them out of the room; the next update takes new room for them.
    """

    keys: Any  # tensors, or None before the first tokens
    values: Any

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self._rooms: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds new tokens, and gives all: [sequences, heads, tokens, width] twice."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = int(self.get_seq_length())
        self.keys = self._extended(0, self.keys, key_states, before)
        self.values = self._extended(1, self.values, value_states, before)
        return self.keys, self.values

    def reset(self) -> None:
        """Forgets all tokens, and lets go of the room."""
        super().reset()
        self._rooms = [None, None]

    def _extended(self, which: int, old: torch.Tensor, new: torch.Tensor, before: int) -> torch.Tensor:
        """What was there with the new after it; what was there is copied only where it is not in the room."""
        after = before + new.shape[-2]
        room = self._rooms[which]
        if room is None or not _begins(room, old, before) or after > room.shape[-2] or room.shape[0] != new.shape[0]:
            tokens = self.tokens if after <= self.tokens else -(-after // STEP) * STEP
            room = new.new_empty((*new.shape[:-2], tokens, new.shape[-1]))
            if before:
                room[..., :before, :] = old
            self._rooms[which] = room
        room[..., before:after, :] = new
        return room[..., :after, :]


def _begins(room: torch.Tensor, states: torch.Tensor, tokens: int) -> bool:
    """Whether these are the room's first tokens."""
    return not tokens or (states.data_ptr() == room.data_ptr() and states.stride() == room.stride())


def give_room(cache: Any, tokens: int) -> None:
    """Gives a cache that transformers has made, and nothing has been put into, layers with room; others stay.

    ``tokens``: of a sequence, as many as a context has. A cache of another kind is left as it is.
    """
    if type(cache) is EncoderDecoderCache:
        give_room(cache.self_attention_cache, tokens)
    elif type(cache) is DynamicCache:
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = lambda: RoomLayer(tokens)
        cache.layers = [
            RoomLayer(tokens) if type(layer) is DynamicLayer and not layer.is_initialized else layer
            for layer in cache.layers
        ]
