"""From a model's name to a running PreTrainedModel: facts, plan, skeleton, sweep."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outsize.engine.cargo import Load, first_of_last_stack, loads_of
from outsize.errors import DoesNotFit, ModelNotFound, UnsupportedModel
from outsize.machine.machine import Machine
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec
from outsize.models.survey_cache import same_bytes
from outsize.planner.plan import Plan
from outsize.sizes import format_size
from outsize.store.buffer import give_back_large_memory
from outsize.store.embedding import RowReader
from outsize.store.reader import DirectFiles, Files
from outsize.store.stream import Stream

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


def open_model(opening: Opening, progress: Progress = lambda done, total: None) -> PreTrainedModel:
    """Builds the model on ``meta``, begins to read its weights, and returns it before they are all there.

    ``progress`` gets the bytes that have come to stay, and those that will. Raises DoesNotFit, DamagedModel or
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
    loads = loads_of(opening.spec, plan, folder.tensors)
    passing = [one.cargo for several in loads for one in several]
    stream = Stream(files, passing, slots=plan.ring_slots, slot_bytes=plan.ring_slot_bytes)
    stream.start(first_of_last_stack(opening.spec, loads))
    try:
        return _build(opening, files, loads, stream, progress)
    except BaseException:
        stream.close()
        files.close()
        raise


def _build(
    opening: Opening, files: Files, loads: Sequence[tuple[Load, ...]], stream: Stream, progress: Progress
) -> PreTrainedModel:
    """Everything that needs torch, while the first bytes arrive."""
    from outsize.engine.devices import Devices
    from outsize.engine.engine import Engine
    from outsize.engine.layer import Stop
    from outsize.engine.sweep import Sweep
    from outsize.models import tracing

    folder, plan = opening.folder, opening.plan
    skeleton = tracing.skeleton_of(folder, same_bytes(folder), opening.auto_class)
    skeleton = tracing.in_order(skeleton, opening.spec)
    rows = RowReader(files)
    stops = [Stop(*each) for each in zip(skeleton.units, opening.spec.modules, plan.items, loads, strict=True)]
    sweep = Sweep(skeleton.model, stops, stream, rows, Devices(opening.machine), progress)
    model: Any = skeleton.model
    model.outsize = Engine(opening.spec, opening.machine, plan, sweep, files)
    for end in (files.close, rows.close, stream.close):  # in reverse, for a model that is dropped instead of closed
        weakref.finalize(model, end)
    model.__class__ = closing(type(model))
    sweep.start()
    return model


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
