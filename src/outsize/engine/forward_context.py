"""One forward pass that is underway, maybe beside others in the same sweep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

import torch

from outsize.engine.devices import Copies

if TYPE_CHECKING:
    from outsize.engine.experts import RoutedExperts
    from outsize.engine.layer import BoundGroup, Layer


class ForwardContext(ABC):
    """What belongs to one forward pass: the layers that it is inside of, its copies of masks, where its inputs were.

    ``tokens``: of its longest sequence, for which a new KV cache has room; 0 where that is unknown. ``scheduled``:
    whether somebody else has counted the memory that the pass takes, and counts the sweeps that it shares.
    """

    scheduled = False

    def __init__(self) -> None:
        self.inside: Counter[Layer] = Counter()
        self.copies: Copies = {}
        self.asked_from: torch.device | None = None
        self.waited = False
        self.tokens = 0

    def begin(self, asked_from: torch.device | None) -> None:
        """A forward pass begins; an interrupt may have ended the one before anywhere."""
        self.waited = False
        self.copies.clear()
        self.inside.clear()
        self.asked_from = asked_from

    @abstractmethod
    def wait(self, group: BoundGroup | RoutedExperts) -> None:
        """Returns once the group's weights are bound, or the routed experts have computed."""
