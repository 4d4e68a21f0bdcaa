"""The sweep: one pass over all layers, in the order of the forward pass, each bound to its weights while it computes.

transformers' forward pass runs unmodified. Hooks at the layers' modules say when one begins and ends; between the two
its weights are there. A group that stays is bound once, and then costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from outsize.engine.binding import Binding, bind_rows
from outsize.engine.devices import Devices, Mover, device_of, move, move_buffers, move_outputs
from outsize.engine.experts import Experts, RoutedExperts
from outsize.engine.forward_context import ForwardContext
from outsize.engine.layer import BoundGroup, Layer, is_lookup
from outsize.engine.logits import lay_out_rows
from outsize.errors import DamagedModel
from outsize.models.spec import ModelSpec
from outsize.models.tracing.units import Unit, submodels
from outsize.planner.footprint import has_bf12
from outsize.planner.plan import Plan
from outsize.planner.weight_group import WeightGroup
from outsize.store.embedding import RowReader
from outsize.store.expert_cache import ExpertStats
from outsize.store.layout import Layout
from outsize.store.stream import Stream
from outsize.store.trace import Trace

NO_EXPERTS = ExpertStats(0, 0, 0, 0.0)
Progress = Callable[[int, int], None]  # bytes that have come to stay, bytes that will


class LonePass(ForwardContext):
    """A forward pass that shares its sweep with no other: whatever it waits for comes next."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def wait(self, group: BoundGroup | RoutedExperts) -> None:
        """Binds the group at once."""
        self._sweep.advance(group, [self])


class Sweep:
    """Runs a skeleton from a stream, as a plan says. Not for several threads at once.

    ``context`` is the forward pass that computes now; who has several underway sets it at every change.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[Layer],
        experts: Experts | None,
        stream: Stream,
        rows: RowReader,
        home: torch.device,
        progress: Progress,
    ) -> None:
        self.model = model
        self.experts = experts
        self.stream = stream
        self.sweeps = 0
        self.forwards = 0
        self.context: ForwardContext = LonePass(self)
        self._progress = progress
        self._rows = rows
        self._layers = layers
        self._mover = Mover(home)
        self._opened: list[BoundGroup] = []
        self.groups = [bound for layer in layers for bound in layer.groups]
        self._stays = sum(bound.binding.layout.nbytes for bound in self.groups if not bound.streamed)
        # On one CPU nothing is to be moved: block by block, looking for it takes longer than it seems.
        self._apart = any(bound.binding.device.type != "cpu" for bound in self.groups)
        self._hooks: list[Any] = []
        move_buffers(self.model, home)
        for layer in layers:
            for module in reversed(layer.unit.modules):  # its own last: a tied one may have buffers of another layer
                move_buffers(module, layer.device)

    def start(self) -> None:
        """Hooks the model, and binds what stays outside the blocks: other code may use that without its module."""
        for layer in self._layers:
            for bound in layer.groups:
                self._unbind(bound)
            self._hook(layer)
        self._hook_models()
        if self.experts is not None:
            self.experts.start(self)
        for layer in self._layers:
            for bound in [b for b in layer.groups if layer.unit.role != "block" and not b.passes]:
                self.advance(bound, ())

    def close(self) -> None:
        """Ends the threads and takes the weights out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self.experts is not None:
            self.experts.close()
        self.stream.close()
        self._rows.close()
        for layer in self._layers:
            Binding(layer.unit.weights, layer.device).unbind()  # what looks rows up too
        if any(bound.binding.device.type == "cuda" for bound in self.groups):
            torch.cuda.empty_cache()  # for other processes: the allocator would keep it

    @property
    def bytes_read(self) -> int:
        """Bytes that came from the drive so far."""
        return self.stream.stats.bytes_read + self._rows.bytes_read + self.expert_stats.bytes_read

    @property
    def waited_s(self) -> float:
        """Seconds that computing has waited for the drive so far."""
        return self.stream.stats.waited_s + self.expert_stats.waited_s

    @property
    def expert_stats(self) -> ExpertStats:
        """What the cache of routed experts has done; nothing where there are none."""
        return NO_EXPERTS if self.experts is None else self.experts.stats

    def keep_rows(self, nbytes: int) -> None:
        """Keeps rows of embeddings that are looked up on disk, up to so many bytes; 0 drops them."""
        self._rows.keep(nbytes)

    def record(self, trace: Trace) -> None:
        """Has a trace say when each layer computes, for as long as the model is open."""

        def hook(layer: Layer) -> None:
            began: dict[ForwardContext, float] = {}

            def before(*_: Any) -> None:
                began[self.context] = time.monotonic()

            def after(*_: Any) -> None:
                trace.add("compute", layer.unit.name, began.pop(self.context))

            module = layer.unit.modules[0]
            self._hooks.append(module.register_forward_pre_hook(before))
            self._hooks.append(module.register_forward_hook(after, always_call=True))

        for layer in self._layers:
            if not layer.encloses:
                hook(layer)

    # --- the gate ---

    def enter(self, bound: BoundGroup) -> None:
        """Returns once the group's weights are in their modules."""
        if not bound.open:
            self.context.wait(bound)

    def advance(self, bound: BoundGroup | RoutedExperts, underway: Iterable[ForwardContext]) -> None:
        """Goes on to a group: lets go of those before it that no pass is inside of any more, and binds it.

        Routed experts are not bound: they compute, for all passes that wait for them.
        """
        self.leave(underway, coming=bound)
        if isinstance(bound, RoutedExperts):
            bound.compute()
            return
        memory = self.stream.acquire(bound.place)
        began = time.monotonic()
        if bound.passes:
            bound.binding.bind(memory, copy=bound.binding.device.type != "cpu")
            self._opened.append(bound)
            bound.open = True
        else:
            self._settle(bound)
            self.stream.release(bound.place)
        if self.stream.trace is not None:
            self.stream.trace.add("bind", bound.group.module, began, bound.binding.layout.nbytes)

    def leave(self, underway: Iterable[ForwardContext] = (), coming: BoundGroup | RoutedExperts | None = None) -> None:
        """Lets go of the groups that were bound just to compute and have.

        Kept are weights around other layers that a pass is still inside of, and weights that the layer of another
        group needs beside it: of one layer, the one that computes next replaces the one before.
        """
        inside = [context.inside for context in underway]
        for bound in self._opened[:]:
            layer = bound.layer
            needed = any(layers[layer] for layers in inside) and (layer.encloses or not _same_layer(bound, coming))
            if not needed:
                self._let_go(bound)

    def _let_go(self, bound: BoundGroup) -> None:
        """Unbinds a streamed group; one that stays and has computed once is encoded now."""
        self._opened.remove(bound)
        bound.open = False
        if bound.streamed:
            self._unbind(bound)
        else:
            self._settle(bound)
        self.stream.release(bound.place)

    def _settle(self, bound: BoundGroup) -> None:
        """Binds a group for good. The buffer that it was read into is still to be released."""
        memory = self.stream.acquire(bound.place)
        bound.computes_first = False
        if bound.binding.bind(memory, copy=not bound.group.in_place, encode=bound.group.format == "bf12"):
            bound.settled = bound.open = True
            bound.layer.waiting.remove(bound)
        else:  # its encoded form would be larger than planned
            self._unbind(bound)
            bound.streamed = True
            self.stream.stream_from_now(bound.place)
        self._progress(self.stream.loaded_bytes, self._stays)

    def _unbind(self, bound: BoundGroup) -> None:
        bound.binding.unbind(lambda: self.enter(bound))

    # --- hooks ---

    def _hook(self, layer: Layer) -> None:
        """Enters a layer before each of its modules computes and leaves it afterwards, whatever happens in between."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if layer.waiting:
                self._enter_layer(layer)
            return self._mover.to(layer.device, args, kwargs, self.context.copies) if self._apart else None

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if layer.waiting:
                inside = self.context.inside
                inside[layer] = max(inside[layer] - 1, 0)
            # The head's weight may be an embedding's too: what is looked up goes to the blocks all the same.
            return self._mover.home(output) if layer.unit.role == "embedding" or is_lookup(module) else None

        streamed = any(bound.streamed for bound in layer.groups)
        for module in layer.unit.modules:
            if streamed and module is not layer.unit.modules[0] and is_lookup(module):
                continue  # it looks its rows up on disk
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after, always_call=True))
        if layer.unit.role == "head":
            self._hooks.append(layer.unit.modules[0].register_forward_pre_hook(lay_out_rows))
        self._hook_groups(layer)

    def _enter_layer(self, layer: Layer) -> None:
        inside = self.context.inside
        inside[layer] += 1
        if inside[layer] == 1:
            for bound in layer.to_enter:
                self.enter(bound)

    def _hook_groups(self, layer: Layer) -> None:
        """Several groups that are bound only while they compute are each entered before their own modules."""
        passing = [bound for bound in layer.groups if bound.passes or bound.group.format == "bf12"]
        for bound in layer.groups:
            if bound in passing and len(passing) > 1:
                self._hook_group(bound)
            if bound.binding.device != layer.device:
                self._hook_device(bound)

    def _hook_group(self, bound: BoundGroup) -> None:
        def before(*_: Any) -> None:
            if bound.passes:
                self.enter(bound)

        for module in bound.binding.modules:
            self._hooks.append(module.register_forward_pre_hook(before))

    def _hook_device(self, bound: BoundGroup) -> None:
        """Lets a group compute on a device of its own, in the middle of its layer."""
        there, back = bound.binding.device, bound.layer.device

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return move(args, there), move(kwargs, there)

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return move(output, back)

        for module in bound.binding.modules:
            self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(after))

    def _hook_models(self) -> None:
        """Inputs go to the first block's device, of stacks that are called by themselves too; outputs come back."""

        def inputs(_: nn.Module, args: Any, kwargs: Any) -> Any:
            return self._mover.inputs(args, kwargs, self.context.copies)

        self._hooks.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        self._hooks.append(self.model.register_forward_hook(self._end))
        for module in submodels(self.model):
            self._hooks.append(module.register_forward_pre_hook(inputs, with_kwargs=True))

    def _begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.forwards += 1
        if self.stream.trace is not None and not self.context.scheduled:
            self.stream.trace.sweeps.append(time.monotonic())
        self.context.begin(device_of(args, kwargs))

    def _end(self, _: nn.Module, args: Any, output: Any) -> Any:
        context = self.context
        self.sweeps += not context.waited  # those who wait share sweeps: who lets them wait counts
        if not context.scheduled:
            self.leave()
        return output if context.asked_from is None else move_outputs(output, context.asked_from)


def _same_layer(bound: BoundGroup, coming: BoundGroup | RoutedExperts | None) -> bool:
    return isinstance(coming, BoundGroup) and coming.layer is bound.layer


def layers_of(
    units: Sequence[Unit],
    spec: ModelSpec,
    plan: Plan,
    groups: Sequence[tuple[WeightGroup, Layout]],
    devices: Devices,
    rows: RowReader,
) -> list[Layer]:
    """The layers of a skeleton, one for each module of the spec, with the groups that the stream reads.

    Raises DamagedModel where the bytes of a group are not where the spec has them.
    """
    # Routed experts lie inside their block too, but need nothing of it while they compute.
    roots = {id(module) for unit in units if unit.role != "experts" for module in unit.modules}
    placed: dict[str, list[tuple[int, WeightGroup, Layout]]] = {}
    for place, (group, layout) in enumerate(groups):
        placed.setdefault(group.module, []).append((place, group, layout))
    found = []
    for unit, module in zip(units, spec.modules, strict=True):
        if module.experts:
            continue
        mine = placed.get(module.name, [])
        streamed = any(group.streamed for _, group, _ in mine)
        rows_alone = all(len(weight.shape) == 2 for weight in unit.weights)  # T5Gemma2's embeddings have a vector too
        tied_lookups = tuple(m for m in unit.modules[1:] if rows_alone and is_lookup(m))
        looked_up = unit.modules if not mine else tied_lookups if streamed else ()
        bind_rows(unit, looked_up, rows)
        encoded = frozenset(t.name for t in module.tensors if has_bf12(module, t, plan.weights))
        by_name = {weight.name: weight for weight in unit.weights}
        bound = []
        for place, group, layout in mine:
            weights = [by_name[name] for name in group.tensors]
            binding = Binding(weights, devices.torch_device(group.device), looked_up, encoded)
            if binding.layout != layout:
                raise DamagedModel(f"the bytes of {unit.name} are not where the spec has them", remedy="load it again")
            bound.append(BoundGroup(group, binding, place))
        own = {id(module) for module in unit.modules}
        inside = {id(inner) for module in unit.modules for inner in module.modules()} - own
        device = devices.torch_device(plan.devices[module.name])
        found.append(Layer(unit, bound, device, encloses=bool(inside & roots)))
    return found
