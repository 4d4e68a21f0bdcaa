"""The sweep: one pass over all units, in the order of the forward pass, each bound to its bytes just when it computes.

transformers' forward pass runs unmodified. Hooks at the units' modules say when one begins and ends; between the two its
weights are there. A unit that stays is bound once, and then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from outsize.facts.architecture import Skeleton, Unit
from outsize.facts.architecture.recording import sources
from outsize.planning.plan import Item, Plan
from outsize.run.binding import Binding, bind_rows
from outsize.run.devices import Devices, Mover
from outsize.store.direct_files import Files
from outsize.store.rows import RowReader
from outsize.store.stream import Cargo, Stream

Stay = Literal["keep", "once", "stream"]
Progress = Callable[[int, int], None]  # bytes that have come to stay, bytes that will


@dataclass(slots=True)
class Station:
    """A unit on the sweep's way: its binding, its place in the stream (None if it never passes it), and its state."""

    unit: Unit
    binding: Binding
    device: torch.device
    stay: Stay | None
    index: int | None = None
    bound: bool = False
    entered: int = 0


class Sweep:
    """Runs a skeleton from a stream, as a plan says. Not for several threads at once."""

    def __init__(self, skeleton: Skeleton, plan: Plan, files: Files, devices: Devices, progress: Progress) -> None:
        self.model = skeleton.model
        self.sweeps = 0
        self._progress = progress
        self._rows = RowReader(files)
        self._mover = Mover(devices.first_block(skeleton, plan))
        self._stations = [
            self._station(unit, item, devices) for unit, item in zip(skeleton.units, plan.items, strict=True)
        ]
        passing = [s for s in self._stations if s.stay is not None]
        for index, station in enumerate(passing):
            station.index = index
        cargo = [Cargo(s.unit.name, s.binding.layout, s.stay) for s in passing if s.stay is not None]
        # Units that only pass the ring on their way to a GPU need it too, while they load.
        ring = [c.layout.nbytes for c in cargo if c.stay != "keep"]
        self.stream = Stream(files, cargo, slots=max(plan.ring_slots, 2), slot_bytes=max(ring, default=0))
        self._stays = sum(c.layout.nbytes for c in cargo if c.stay != "stream")
        self._first_of_last_stack = _first_of_last_stack(passing)
        self._hooks: list[Any] = []

    def start(self) -> None:
        """Begins to read, and binds what lies outside the blocks and stays: other code may use it without its module."""
        for station in self._stations:
            station.binding.unbind()
            self._hook(station)
        self._hooks.append(self.model.register_forward_pre_hook(self._begin))
        self.stream.start(self._first_of_last_stack)
        for station in self._stations:
            if station.stay in ("keep", "once") and station.unit.role != "block":
                self._load(station)

    def close(self) -> None:
        """Ends the threads and takes the weights out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.stream.close()
        self._rows.close()
        for station in self._stations:
            station.binding.unbind("is gone: the model was closed")

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the drive so far."""
        return self.stream.stats.bytes_read + self._rows.bytes_read

    def _station(self, unit: Unit, item: Item, devices: Devices) -> Station:
        device = devices.torch_device(item.compute)
        tied_lookups = tuple(m for m in unit.modules[1:] if isinstance(m, nn.Embedding))
        looked_up = unit.modules if item.rows else tied_lookups if item.streamed else ()
        binding = Binding(unit, device, skip=looked_up)
        if looked_up:
            bind_rows(unit, looked_up, self._read_rows)
        stay: Stay | None
        if item.rows:
            stay = None
        elif item.streamed:
            stay = "stream"
        else:
            stay = "keep" if item.home == "ram" and not binding.copies else "once"
        return Station(unit, binding, device, stay)

    def _hook(self, station: Station) -> None:
        """Enters a unit before each of its modules computes and leaves it afterwards, whatever happens in between."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            self._enter(station)
            return self._mover.to(station.device, args, kwargs)

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            self._leave(station)
            return self._mover.home(output) if station.unit.role == "embedding" else None

        lookups = () if station.stay != "stream" else tuple(m for m in station.unit.modules[1:] if _is_lookup(m))
        for module in station.unit.modules:
            if module in lookups:
                continue
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))

    def _begin(self, _: nn.Module, args: Any) -> None:
        self.sweeps += 1
        self._mover.forget()

    def _enter(self, station: Station) -> None:
        station.entered += 1
        if station.entered == 1 and not station.bound and station.index is not None:
            self._load(station)

    def _load(self, station: Station) -> None:
        assert station.index is not None
        memory = self.stream.acquire(station.index)
        station.binding.bind(memory, own=station.stay == "once")
        if station.stay != "stream":
            station.bound = True
            self.stream.release(station.index)
            self._progress(self.stream.loaded, self._stays)

    def _leave(self, station: Station) -> None:
        station.entered = max(station.entered - 1, 0)
        if station.stay == "stream" and station.index is not None and not station.entered:
            station.binding.unbind()
            self.stream.release(station.index)

    def _read_rows(self, weight: Any, rows: list[int]) -> torch.Tensor:
        (stored,) = sources(weight.expression)
        raw = self._rows.read(stored, rows)
        dtype = getattr(torch, stored.dtype)
        return torch.frombuffer(raw, dtype=dtype).view(len(rows), -1).to(weight.dtype)  # [rows, width]


def _is_lookup(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _first_of_last_stack(stations: list[Station]) -> int:
    """Where the next sweep begins: at the first unit, or at the decoder's first block, swept again for every token."""
    stacks = [s.unit.stack for s in stations]
    blocks = [i for i, s in enumerate(stations) if s.unit.role == "block"]
    if not blocks or stacks[blocks[0]] == stacks[blocks[-1]]:
        return 0
    return next(i for i in blocks if stacks[i] == stacks[blocks[-1]])
