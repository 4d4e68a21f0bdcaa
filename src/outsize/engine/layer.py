"""A module of the model as the sweep passes it: transformers' modules, its weight groups, and what is bound of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from outsize.engine.binding import Binding
from outsize.models.tracing.units import Unit
from outsize.planner.weight_group import WeightGroup


class BoundGroup:
    """A weight group on its way into a model's modules.

    ``place``: its place in the stream. ``device``: where its weights compute. ``streamed``: every sweep binds it anew.
    ``settled``: it is bound for good. ``open``: its weights are in their modules now.
    """

    __slots__ = ("binding", "computes_first", "device", "group", "layer", "open", "place", "settled", "streamed")

    def __init__(self, group: WeightGroup, binding: Binding, place: int) -> None:
        self.group = group
        self.binding = binding
        self.place = place
        self.streamed = group.streamed
        self.computes_first = False  # once as it was read, before it is encoded
        self.settled = self.open = False
        self.layer: Layer

    @property
    def passes(self) -> bool:
        """Whether it is bound only while it computes."""
        return self.streamed or self.computes_first


class Layer:
    """A module with its weight groups, in the order in which they compute; none where rows are looked up on disk.

    ``device`` computes it, and has its KV cache. ``encloses``: other layers lie inside it, because it owns weights of
    the whole model, so its weights must stay until it is left. ``waiting``: groups that are not bound for good yet.
    """

    def __init__(self, unit: Unit, groups: Sequence[BoundGroup], device: torch.device, *, encloses: bool) -> None:
        self.unit = unit
        self.groups = tuple(groups)
        self.device = device
        self.encloses = encloses
        self.waiting = list(groups)
        streams = any(bound.streamed for bound in groups)
        for bound in groups:
            bound.layer = self
            bound.computes_first = bound.group.format == "bf12" and not streams

    @property
    def to_enter(self) -> list[BoundGroup]:
        """The groups that are bound before the layer computes: those that stay, and one that is streamed alone.

        Several that are streamed are bound one after the other, each before its own modules.
        """
        passing = [bound for bound in self.waiting if bound.passes]
        return [bound for bound in self.waiting if not bound.passes or len(passing) == 1]


def is_lookup(module: nn.Module) -> bool:
    """Whether rows of the module's weight are looked up, rather than multiplied."""
    return isinstance(module, nn.Embedding)
