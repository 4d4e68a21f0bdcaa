"""From a model's name to a running PreTrainedModel: facts, plan, skeleton, sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outsize.errors import DoesNotFit, ModelNotFound, UnsupportedModel
from outsize.facts.folder import ModelFolder
from outsize.facts.machine import Machine
from outsize.facts.model import ModelSpec
from outsize.facts.resolve import same_bytes
from outsize.facts.sizes import format_size
from outsize.planning.plan import Plan

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
    from outsize.facts import architecture
    from outsize.run.devices import Devices
    from outsize.run.engine import Engine
    from outsize.run.sweep import Sweep
    from outsize.store.direct_files import DirectFiles

    folder, plan = opening.folder, opening.plan
    check_fits(opening.spec, plan)
    if plan.weights != "native":
        raise UnsupportedModel(f"{plan.weights} weights cannot be run yet", remedy="weights='native'")
    if folder.path is None or folder.format == "none":
        raise ModelNotFound(f"{folder.origin}: its weights are not on this machine")
    config = architecture.read_config(folder.config)
    cls = architecture.model_class(config, opening.auto_class)
    skeleton = architecture.rehearse(config, cls, folder.tensors, same_bytes(folder), folder.path)
    skeleton = architecture.in_order(skeleton, opening.spec)
    files = DirectFiles(folder.path, {f.name: f.size for f in folder.files})
    sweep = Sweep(skeleton, plan, files, Devices(opening.machine), progress)
    engine = Engine(opening.spec, opening.machine, plan, sweep)
    model: Any = skeleton.model
    model.outsize = engine
    sweep.start()
    return model  # type: ignore[no-any-return]
