"""The sweep: one pass over all units, in the order of the forward pass, each bound to its bytes while it computes.

transformers' forward pass runs unmodified. Hooks at the units' modules say when one begins and ends; between the two
its weights are there. A unit that stays is bound once, and then costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outsize.engine.binding import Binding, bind_rows
from outsize.engine.devices import Devices, Mover, device_of, move_buffers, move_outputs
from outsize.engine.head import lay_out_rows
from outsize.engine.layer import Part, Passage, Station, Stop
from outsize.errors import DamagedModel
from outsize.models.tracing.recording import sources
from outsize.store.embedding import RowReader
from outsize.store.stream import Stream

Progress = Callable[[int, int], None]  # bytes that have come to stay, bytes that will


class Sweep:
    """Runs a skeleton from a stream, as a plan says. Not for several threads at once.

    ``passage`` is the forward pass that computes now; who has several underway says so at every change.
    """

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
        self.forwards = 0
        self.passage = Passage()
        self._progress = progress
        self._rows = rows
        self._roots = {id(module) for stop in stops for module in stop.unit.modules}
        home = devices.first_block([(stop.unit, stop.item) for stop in stops])
        self._mover = Mover(home)
        numbers = itertools.count()
        self._stations = [self._station(stop, devices.torch_device(stop.item.compute), numbers) for stop in stops]
        self._stays = sum(
            load.cargo.layout.nbytes for stop in stops for load in stop.loads if load.cargo.stay != "stream"
        )
        # On one CPU nothing is to be moved: block by block, looking for it takes longer than it seems.
        self._apart = any(station.device.type != "cpu" for station in self._stations)
        self._places = [(station, part) for station in self._stations for part in station.parts]
        self._hooks: list[Any] = []
        move_buffers(self.model, home)
        for station in self._stations:
            for module in reversed(station.unit.modules):  # its own last: a tied one may have buffers of another unit
                move_buffers(module, station.device)

    def open(self, place: int) -> None:
        """Binds what a passage waits for at that place in the stream: a streamed part, or what stays of a unit."""
        station, part = self._places[place]
        if part.passes:
            self._turn_to(station, part)
        else:
            self._load(station)

    def shut(self, place: int) -> None:
        """Lets go of what was streamed for that place."""
        self._turn_to(self._places[place][0], None)

    def is_needed(self, place: int, passages: Iterable[Passage]) -> bool:
        """Whether any of the passages is inside a unit that encloses others, and so needs its weights until its end."""
        station, _ = self._places[place]
        return station.encloses and any(passage.entered[station] for passage in passages)

    def keep_rows(self, nbytes: int) -> None:
        """Keeps rows of embeddings that are looked up on disk, up to so many bytes; 0 drops them."""
        self._rows.keep(nbytes)

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
            late = bool(load.compact) and not streamed
            parts.append(Part(binding, next(numbers), load.cargo.stay, load.compact, late))
        own = {id(module) for module in unit.modules}
        inside = {id(inner) for module in unit.modules for inner in module.modules()} - own
        return Station(unit, tuple(parts), device, encloses=bool(inside & self._roots))

    def _hook(self, station: Station) -> None:
        """Enters a unit before each of its modules computes and leaves it afterwards, whatever happens in between."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            self._enter(station)
            return self._mover.to(station.device, args, kwargs, self.passage.kept) if self._apart else None

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
            if part.passes:
                self._come_to(station, part)

        for module in part.binding.modules:
            self._hooks.append(module.register_forward_pre_hook(before))

    def _hook_models(self) -> None:
        """Inputs go to the first block's device, of stacks that are called by themselves too; outputs come back."""

        def inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return self._mover.inputs(args, kwargs, self.passage.kept)

        self._hooks.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        self._hooks.append(self.model.register_forward_hook(self._end))
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel):
                self._hooks.append(module.register_forward_pre_hook(inputs, with_kwargs=True))

    def _begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.forwards += 1
        self.passage.waited = False
        self.passage.kept.clear()
        self.passage.entered.clear()  # an interrupt may have ended the last one anywhere
        self.passage.asked_from = device_of(args, kwargs)

    def _end(self, _: nn.Module, args: Any, output: Any) -> Any:
        self.sweeps += not self.passage.waited  # those who wait share sweeps: who lets them wait counts
        return output if self.passage.asked_from is None else move_outputs(output, self.passage.asked_from)

    def _enter(self, station: Station) -> None:
        entered = self.passage.entered
        entered[station] += 1
        if entered[station] > 1:
            return
        staying = station.staying
        if staying and not station.bound:
            if self.passage.wait is None:
                self._load(station)
            else:
                self._wait(staying[0].index)
        streamed = station.streamed
        if len(streamed) == 1:
            self._come_to(station, streamed[0])

    def _leave(self, station: Station) -> None:
        entered = self.passage.entered
        entered[station] = max(entered[station] - 1, 0)
        if not entered[station] and self.passage.wait is None:
            self._turn_to(station, None)

    def _come_to(self, station: Station, part: Part) -> None:
        """Goes on once a streamed part is bound."""
        if self.passage.wait is None:
            self._turn_to(station, part)
        elif station.now is not part:
            self._wait(part.index)

    def _wait(self, place: int) -> None:
        assert self.passage.wait is not None
        self.passage.waited = True
        self.passage.wait(place)

    def _load(self, station: Station) -> None:
        """Binds what stays of a unit, once, as its bytes arrive. What turns out too large to stay is streamed."""
        staying = station.staying
        if station.bound or not staying:
            return
        for part in staying:
            self._settle(part)
            self.stream.release(part.index)
        station.bound = True
        self._progress(self.stream.loaded, self._stays)

    def _settle(self, part: Part) -> None:
        """Binds what stays, for good. The buffer that it was read into is still to be released."""
        memory = self.stream.acquire(part.index)
        if part.binding.bind(memory, own=part.stay == "once", compact=part.compact):
            part.settled = True
            return
        part.binding.unbind()
        part.stay = "stream"
        self.stream.stream_from_now(part.index)

    def _let_go(self, part: Part) -> None:
        """Behind its computation: what is streamed goes, what is late comes to stay."""
        if part.late:
            part.late = False
            self._settle(part)
            self._progress(self.stream.loaded, self._stays)
        else:
            part.binding.unbind()
        self.stream.release(part.index)

    def _turn_to(self, station: Station, part: Part | None) -> None:
        """Lets go of a unit's part that has computed, and binds the one that comes."""
        if station.now is part:
            return
        if station.now is not None:
            self._let_go(station.now)
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
