"""The sweep: one pass over all units, in the order of the forward pass, each bound to its bytes while it computes.

transformers' forward pass runs unmodified. Hooks at the units' modules say when one begins and ends; between the two
its weights are there. A unit that stays is bound once, and then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outsize.errors import DamagedModel
from outsize.facts.architecture import Skeleton, Unit
from outsize.facts.architecture.recording import sources
from outsize.planning.plan import Item, Plan
from outsize.run.binding import Binding, bind_rows
from outsize.run.devices import Devices, Mover, device_of, move_buffers, move_outputs
from outsize.store.rows import RowReader
from outsize.store.stream import Cargo, Stay, Stream

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

    def __init__(
        self,
        skeleton: Skeleton,
        plan: Plan,
        cargo: Sequence[Cargo | None],
        stream: Stream,
        rows: RowReader,
        devices: Devices,
        progress: Progress,
    ) -> None:
        self.model = skeleton.model
        self.stream = stream
        self.sweeps = 0
        self._progress = progress
        self._rows = rows
        home = devices.first_block(skeleton, plan)
        self._mover = Mover(home)
        indices = iter(range(len(cargo)))
        self._stations = [
            self._station(unit, item, one, None if one is None else next(indices), devices)
            for unit, item, one in zip(skeleton.units, plan.items, cargo, strict=True)
        ]
        self._stays = sum(one.layout.nbytes for one in cargo if one is not None and one.stay != "stream")
        self._asked_from: torch.device | None = None
        self._hooks: list[Any] = []
        move_buffers(self.model, home)
        for station in self._stations:
            for module in reversed(station.unit.modules):  # its own last: a tied one may have buffers of another unit
                move_buffers(module, station.device)

    def start(self) -> None:
        """Hooks the model, and binds what stays outside the blocks: other code may use that without its module."""
        for station in self._stations:
            station.binding.unbind()
            self._hook(station)
        self._hook_models()
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
        if any(station.device.type == "cuda" for station in self._stations):
            torch.cuda.empty_cache()  # for other processes: the allocator would keep it

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the drive so far."""
        return self.stream.stats.bytes_read + self._rows.bytes_read

    def _station(self, unit: Unit, item: Item, cargo: Cargo | None, index: int | None, devices: Devices) -> Station:
        device = devices.torch_device(item.compute)
        tied_lookups = tuple(m for m in unit.modules[1:] if isinstance(m, nn.Embedding))
        looked_up = unit.modules if cargo is None else tied_lookups if cargo.stay == "stream" else ()
        binding = Binding(unit, device, skip=looked_up)
        if looked_up:
            bind_rows(unit, looked_up, self._read_rows)
        if cargo is not None and cargo.layout != binding.layout:
            raise DamagedModel(f"the bytes of {unit.name} are not where the spec has them", remedy="load it again")
        return Station(unit, binding, device, None if cargo is None else cargo.stay, index)

    def _hook(self, station: Station) -> None:
        """Enters a unit before each of its modules computes and leaves it afterwards, whatever happens in between."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            self._enter(station)
            return self._mover.to(station.device, args, kwargs)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            self._leave(station)
            # The head's weight may be an embedding's too: what is looked up goes to the blocks all the same.
            return self._mover.home(output) if station.unit.role == "embedding" or _is_lookup(module) else None

        lookups = () if station.stay != "stream" else tuple(m for m in station.unit.modules[1:] if _is_lookup(m))
        for module in station.unit.modules:
            if module in lookups:
                continue
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))

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
