"""What a sweep passes: units with the parts that are read and bound together; and who passes there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from outsize.engine.binding import Binding
from outsize.engine.cargo import Load
from outsize.engine.devices import Kept
from outsize.models.spec import ModuleSpec
from outsize.models.tracing.units import Unit
from outsize.planner.plan import Item
from outsize.store.stream import Stay


@dataclass(frozen=True, slots=True)
class Stop:
    """One unit as all floors know it: transformers' modules, the spec's facts, the plan's decision, what is read."""

    unit: Unit
    module: ModuleSpec
    item: Item
    loads: tuple[Load, ...]


@dataclass(slots=True)
class Part:
    """What of a unit is read and bound together, and its place in the stream.

    ``late``: it computes once as it was read, and is made compact behind that. ``settled``: it is bound for good.
    """

    binding: Binding
    index: int
    stay: Stay
    compact: frozenset[str]
    late: bool = False
    settled: bool = False

    @property
    def passes(self) -> bool:
        """Whether it is bound just while it computes."""
        return self.stay == "stream" or self.late


@dataclass(slots=True, eq=False)
class Station:
    """A unit on the sweep's way, and its state.

    Those of its parts that stay are ``bound`` once. Of the streamed ones, in the order in which they compute, one is in
    memory at a time. It has no parts if it is looked up on disk. It ``encloses`` other units where it is a weight of
    the whole model's own.
    """

    unit: Unit
    parts: tuple[Part, ...]
    device: torch.device
    encloses: bool
    bound: bool = False
    now: Part | None = None

    @property
    def streamed(self) -> tuple[Part, ...]:
        """The parts that are bound just while they compute."""
        return tuple(part for part in self.parts if part.passes)

    @property
    def staying(self) -> tuple[Part, ...]:
        """The parts that are bound before the unit computes, once."""
        return tuple(part for part in self.parts if not part.passes and not part.settled)


@dataclass(slots=True, eq=False)
class Passage:
    """What belongs to one forward pass that may be underway beside others: which units it is in, its copies of masks.

    ``wait``: called with a place in the stream before the pass goes on with what must be bound there first, and returns
    when it is. Without it the sweep binds whatever the pass comes to, and lets it go behind it. ``tokens``: of
    its longest sequence, for which a new cache has room; 0 where that is unknown.
    """

    wait: Callable[[int], None] | None = None
    entered: Counter[Station] = field(default_factory=Counter)
    kept: Kept = field(default_factory=dict)
    asked_from: torch.device | None = None
    waited: bool = False
    tokens: int = 0
