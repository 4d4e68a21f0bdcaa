"""The sweep: one pass over all units, in the order of the forward pass, each bound to its bytes while it computes.

transformers' forward pass runs unmodified. Hooks at the units' modules say when one begins and ends; between the two
its weights are there. A unit that stays is bound once, and then costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outsize.errors import DamagedModel
from outsize.facts.architecture import Unit
from outsize.facts.architecture.recording import sources
from outsize.facts.model import ModuleSpec
from outsize.planning.plan import Item
from outsize.run.binding import Binding, bind_rows
from outsize.run.cargo import Load
from outsize.run.devices import Devices, Mover, device_of, move_buffers, move_outputs
from outsize.run.head import lay_out_rows
from outsize.store.rows import RowReader
from outsize.store.stream import Stay, Stream

Progress = Callable[[int, int], None]  # bytes that have come to stay, bytes that will


@dataclass(frozen=True, slots=True)
class Stop:
    """One unit as all floors know it: transformers' modules, the spec's facts, the plan's decision, what is read."""

    unit: Unit
    module: ModuleSpec
    item: Item
    loads: tuple[Load, ...]


@dataclass(slots=True)
class Part:
    """What of a unit is read and bound together, and its place in the stream."""

    binding: Binding
    index: int
    stay: Stay
    compact: frozenset[str]


@dataclass(slots=True)
class Station:
    """A unit on the sweep's way, and its state.

    Those of its parts that stay are ``bound`` once. Of the streamed ones, in the order in which they compute, one is in
    memory at a time. It has no parts if it is looked up on disk.
    """

    unit: Unit
    parts: tuple[Part, ...]
    device: torch.device
    bound: bool = False
    entered: int = 0
    now: Part | None = None

    @property
    def streamed(self) -> tuple[Part, ...]:
        """The parts that are read again in every sweep."""
        return tuple(part for part in self.parts if part.stay == "stream")


class Sweep:
    """Runs a skeleton from a stream, as a plan says. Not for several threads at once."""

    def __init__(
        self,
        model: PreTrainedModel,
        stops: Sequence[Stop],
        stream: Stream,
        rows: RowReader,
        devices: Devices,
        progress: Progress,
    ) -> None:
        self.model = model
        self.stream = stream
        self.sweeps = 0
        self._progress = progress
        self._rows = rows
        home = devices.first_block([(stop.unit, stop.item) for stop in stops])
        self._mover = Mover(home)
        numbers = itertools.count()
        self._stations = [self._station(stop, devices.torch_device(stop.item.compute), numbers) for stop in stops]
        self._stays = sum(
            load.cargo.layout.nbytes for stop in stops for load in stop.loads if load.cargo.stay != "stream"
        )
        self._asked_from: torch.device | None = None
        self._hooks: list[Any] = []
        move_buffers(self.model, home)
        for station in self._stations:
            for module in reversed(station.unit.modules):  # its own last: a tied one may have buffers of another unit
                move_buffers(module, station.device)

    def start(self) -> None:
        """Hooks the model, and binds what stays outside the blocks: other code may use that without its module."""
        for station in self._stations:
            for part in station.parts:
                part.binding.unbind()
            self._hook(station)
        self._hook_models()
        for station in self._stations:
            if station.unit.role != "block":
                self._load(station)

    def close(self) -> None:
        """Ends the threads and takes the weights out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.stream.close()
        self._rows.close()
        for station in self._stations:
            Binding(station.unit.weights, station.device).unbind(
                "is gone: the model was closed"
            )  # what looks rows up too
        if any(station.device.type == "cuda" for station in self._stations):
            torch.cuda.empty_cache()  # for other processes: the allocator would keep it

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the drive so far."""
        return self.stream.stats.bytes_read + self._rows.bytes_read

    def _station(self, stop: Stop, device: torch.device, numbers: Iterator[int]) -> Station:
        unit = stop.unit
        streamed = any(load.cargo.stay == "stream" for load in stop.loads)
        tied_lookups = tuple(m for m in unit.modules[1:] if _is_lookup(m))
        looked_up = unit.modules if not stop.loads else tied_lookups if streamed else ()
        if looked_up:
            bind_rows(unit, looked_up, self._read_rows)
        by_name = {weight.name: weight for weight in unit.weights}
        parts = []
        for load in stop.loads:
            binding = Binding([by_name[tensor.name] for tensor in load.tensors], device, skip=looked_up)
            if load.cargo.layout != binding.layout:
                raise DamagedModel(f"the bytes of {unit.name} are not where the spec has them", remedy="load it again")
            parts.append(Part(binding, next(numbers), load.cargo.stay, load.compact))
        return Station(unit, tuple(parts), device)

    def _hook(self, station: Station) -> None:
        """Enters a unit before each of its modules computes and leaves it afterwards, whatever happens in between."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            self._enter(station)
            return self._mover.to(station.device, args, kwargs)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            self._leave(station)
            # The head's weight may be an embedding's too: what is looked up goes to the blocks all the same.
            return self._mover.home(output) if station.unit.role == "embedding" or _is_lookup(module) else None

        lookups = tuple(m for m in station.unit.modules[1:] if _is_lookup(m)) if station.streamed else ()
        for module in station.unit.modules:
            if module in lookups:
                continue
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))
        if station.unit.role == "head":
            self._hooks.append(station.unit.modules[0].register_forward_pre_hook(lay_out_rows))
        passing = [part for part in station.parts if part.stay == "stream" or part.compact]
        for part in passing if len(passing) > 1 else ():
            self._hook_part(station, part)

    def _hook_part(self, station: Station, part: Part) -> None:
        def before(*_: Any) -> None:
            if part.stay == "stream":
                self._turn_to(station, part)

        for module in part.binding.modules:
            self._hooks.append(module.register_forward_pre_hook(before))

    def _hook_models(self) -> None:
        """Inputs go to the first block's device, of stacks that are called by themselves too; outputs come back."""

        def inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return self._mover.inputs(args, kwargs)

        self._hooks.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._hooks.append(self.model.register_forward_hook(self._end))
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel):
                self._hooks.append(module.register_forward_pre_hook(inputs, with_kwargs=True))

    def _begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.sweeps += 1
        self._mover.forget()
        self._asked_from = device_of(args, kwargs)

    def _end(self, _: nn.Module, args: Any, output: Any) -> Any:
        return output if self._asked_from is None else move_outputs(output, self._asked_from)

    def _enter(self, station: Station) -> None:
        station.entered += 1
        if station.entered > 1:
            return
        self._load(station)
        streamed = station.streamed
        if len(streamed) == 1:
            self._turn_to(station, streamed[0])

    def _leave(self, station: Station) -> None:
        station.entered = max(station.entered - 1, 0)
        if not station.entered:
            self._turn_to(station, None)

    def _load(self, station: Station) -> None:
        """Binds what stays of a unit, once, as its bytes arrive. What turns out too large to stay is streamed."""
        staying = [part for part in station.parts if part.stay != "stream"]
        if station.bound or not staying:
            return
        for part in staying:
            memory = self.stream.acquire(part.index)
            if not part.binding.bind(memory, own=part.stay == "once", compact=part.compact):
                part.stay = "stream"
                self.stream.stream_from_now(part.index)
            self.stream.release(part.index)
        station.bound = True
        self._progress(self.stream.loaded, self._stays)

    def _turn_to(self, station: Station, part: Part | None) -> None:
        """Lets go of a streamed unit's part that has computed, and binds the one that comes."""
        if station.now is part:
            return
        if station.now is not None:
            station.now.binding.unbind()
            self.stream.release(station.now.index)
            station.now = None
        if part is not None:
            part.binding.bind(self.stream.acquire(part.index), own=False)
            station.now = part

    def _read_rows(self, weight: Any, rows: list[int]) -> torch.Tensor:
        (stored,) = sources(weight.expression)
        raw = self._rows.read(stored, rows)
        dtype = getattr(torch, stored.dtype)
        return torch.frombuffer(raw, dtype=dtype).view(len(rows), -1).to(weight.dtype)  # [rows, width]


def _is_lookup(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)
