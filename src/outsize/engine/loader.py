"""From a model's name to a running PreTrainedModel: facts, plan, skeleton, sweep."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from outsize.errors import DamagedModel, DoesNotFit, ModelNotFound, UnsupportedModel
from outsize.machine.machine import Machine
from outsize.models.expert_slices import expert_tensors
from outsize.models.expert_uses import keep_routing
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.survey_cache import same_bytes, spec_key
from outsize.planner.plan import Plan
from outsize.planner.weight_group import WeightGroup
from outsize.sizes import format_size
from outsize.store.buffer import give_back_large_memory
from outsize.store.embedding import RowReader
from outsize.store.expert_cache import ExpertCache
from outsize.store.layout import Layout, lay_out
from outsize.store.reader import DirectFiles, Files
from outsize.store.stream import Stream
from outsize.store.trace import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Opening:
    """Everything that was decided before torch is needed."""

    folder: ModelFolder
    spec: ModelSpec
    machine: Machine
    plan: Plan
    auto_class: str | None = None


def check_fits(spec: ModelSpec, plan: Plan) -> None:
    """Raises DoesNotFit, with what would fit, for a plan that does not."""
    if plan.fits:
        return
    short = max(plan.usage, key=lambda tier: plan.usage[tier].total_bytes - plan.usage[tier].capacity_bytes)
    usage = plan.usage[short]
    raise DoesNotFit(
        f"{spec.id} ({plan.weights}) does not fit",
        need=f"{format_size(usage.total_bytes)} of {short}",
        have=format_size(usage.capacity_bytes),
        remedy="; ".join(plan.remedies),
        shortfall_bytes=plan.shortfall_bytes,
    )


def open_model(
    opening: Opening, progress: Progress = lambda done, total: None, trace: Trace | None = None
) -> PreTrainedModel:
    """Builds the model on ``meta``, begins to read its weights, and returns it before they are all there.

    ``progress`` gets the bytes that have come to stay, and those that will; ``trace`` what is read and computed when.
    Raises DoesNotFit, DamagedModel or
    UnsupportedModel.
    """
    check_fits(opening.spec, opening.plan)
    folder, plan = opening.folder, opening.plan
    if plan.weights != "native" and not opening.spec.formats:
        raise UnsupportedModel(f"{plan.weights} weights cannot be run yet", remedy="weights='native'")
    if folder.path is None or folder.format == "none":
        raise ModelNotFound(f"{folder.origin}: its weights are not on this machine")
    give_back_large_memory()
    files = DirectFiles(folder.path, {f.name: f.size for f in folder.files})
    ends = [files.close]  # in the order in which things end; the files last
    try:
        groups = with_layouts(opening.spec, plan, folder.tensors)
        stream = Stream(files, groups, slots=plan.ring_slots, slot_bytes=plan.ring_slot_bytes, trace=trace)
        ends.insert(0, stream.close)
        cache = _expert_cache(opening, files, trace)
        if cache is not None:
            ends.insert(0, cache.close)
        stream.start(first_of_last_stack(opening.spec, groups))
        return _build(opening, files, groups, stream, cache, progress)
    except BaseException:
        for end in ends:
            end()
        raise


def _expert_cache(opening: Opening, files: Files, trace: Trace | None) -> ExpertCache | None:
    """The cache of routed experts, which reads at once what is to rest in RAM; None for a model that has none."""
    plan = opening.plan
    groups = [group for group in plan.groups if group.experts]
    if not groups:
        return None
    by_name = {tensor.name: tensor for tensor in opening.folder.tensors}
    layouts = []
    for group in groups:
        parts = [
            expert_tensors(_named(opening.spec.origins[name].names, by_name), group.experts) for name in group.tensors
        ]
        layouts.append([lay_out(chain.from_iterable(of_one)) for of_one in zip(*parts, strict=True)])
    cache = ExpertCache(files, layouts, slots=plan.expert_slots, slot_bytes=plan.expert_slot_bytes, trace=trace)
    cache.load([place for place, group in enumerate(groups) if group.tier == "ram"])
    return cache


def _named(names: Sequence[str], stored: Mapping[str, StoredTensor]) -> list[StoredTensor]:
    missing = [name for name in names if name not in stored]
    if missing:
        raise DamagedModel(f"the checkpoint lacks {missing[0]}")
    return [stored[name] for name in names]


def _build(
    opening: Opening,
    files: Files,
    groups: Sequence[tuple[WeightGroup, Layout]],
    stream: Stream,
    cache: ExpertCache | None,
    progress: Progress,
) -> PreTrainedModel:
    """Everything that needs torch, while the first bytes arrive."""
    from outsize.engine.devices import CPU, Devices
    from outsize.engine.engine import Engine
    from outsize.engine.experts import experts_of
    from outsize.engine.sweep import Sweep, layers_of
    from outsize.models import tracing

    folder, plan = opening.folder, opening.plan
    skeleton = tracing.skeleton_of(folder, same_bytes(folder), opening.auto_class)
    skeleton = tracing.in_order(skeleton, opening.spec)
    rows = RowReader(files)
    devices = Devices(opening.machine)
    layers = layers_of(skeleton.units, opening.spec, plan, groups, devices, rows)
    experts = None if cache is None else experts_of(skeleton.units, opening.spec, plan, cache, devices)
    home = next((layer.device for layer in layers if layer.unit.role == "block"), CPU)
    sweep = Sweep(skeleton.model, layers, experts, stream, rows, home, progress)
    model: Any = skeleton.model
    model.outsize = Engine(opening.spec, opening.machine, plan, sweep, files)
    if experts is not None:
        key, uses = spec_key(folder, opening.auto_class), experts.uses
        model.outsize.at_close(lambda: keep_routing(key, uses))
    # In reverse, for a model that is dropped instead of closed.
    for end in (files.close, rows.close, stream.close, *([] if cache is None else [cache.close])):
        weakref.finalize(model, end)
    model.__class__ = closing(type(model))
    sweep.start()
    if stream.trace is not None:
        sweep.record(stream.trace)
    return model


def with_layouts(
    spec: ModelSpec, plan: Plan, tensors: Sequence[StoredTensor]
) -> tuple[tuple[WeightGroup, Layout], ...]:
    """The groups that the stream reads, each with the layout of its bytes: all but experts and rows looked up on disk.

    Needs no torch, so that reading begins before torch is imported. Raises DamagedModel where the spec names a tensor
    that the checkpoint lacks.
    """
    by_name = {tensor.name: tensor for tensor in tensors}

    def stored(group: WeightGroup) -> list[StoredTensor]:
        return _named([name for tensor in group.tensors for name in spec.origins[tensor].names], by_name)

    passing = (group for group in plan.groups if group.residency != "cached" and not group.experts)
    return tuple((group, lay_out(stored(group))) for group in passing)


def first_of_last_stack(spec: ModelSpec, groups: Sequence[tuple[WeightGroup, Layout]]) -> int:
    """Where the stream goes on after its last group: at its first, or at the decoder's first block, swept per token."""
    modules = {module.name: module for module in spec.modules}
    blocks = [(i, modules[group.module]) for i, (group, _) in enumerate(groups)]
    blocks = [(i, module) for i, module in blocks if module.role == "block"]
    if not blocks or blocks[0][1].stack == blocks[-1][1].stack:
        return 0
    return next(i for i, module in blocks if module.stack == blocks[-1][1].stack)


def closing(cls: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A class that differs from ``cls`` in one thing: ``with`` closes the model at its end.

    Python looks that up on the type, never on the object. Its name is that of ``cls``, for transformers asks for it.
    """

    def enter(self: Any) -> Any:
        return self

    def leave(self: Any, *_: object) -> None:
        self.outsize.close()

    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**same, "__enter__": enter, "__exit__": leave})
