"""The Python face: ``outsize.plan`` and ``outsize.load``. Nothing here imports torch until a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from outsize.convert.cache import converted_folder
from outsize.engine.loader import Opening, open_model
from outsize.machine.describe import parse_machine
from outsize.models.files.folder import ModelFolder
from outsize.models.resolve import fetch_folder, resolve_spec
from outsize.models.survey_cache import folder_spec
from outsize.options import Size, drop_gpus, parse_weights, request_for
from outsize.planner.plan import Plan, Weights
from outsize.planner.planner import choose, plan_all, plan_one

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plan(  # noqa: PLR0913  the interface's own keywords
    model: str,
    *,
    weights: str | None = None,
    context: int | None = None,
    batch: int = 1,
    machine: str = "local",
    ram: Size | None = None,
    gpu_memory: Size | Sequence[Size] | None = None,
    no_gpu: bool = False,
    weight_limits: Mapping[str, Size] | None = None,
    revision: str | None = None,
) -> Plan:
    """The plan for a model on a machine, without loading it: a home for every module, bytes per tier, seconds.

    ``machine``: "local", a preset, a JSON file or a description. Without ``weights`` native, int8 and int4 are compared
    and the one to choose is returned; a quantised checkpoint is planned as it is. A plan that does not fit says so in
    ``fits`` and ``shortfall_bytes``.
    Raises UsageError, ModelNotFound, HubUnreachable, DamagedModel or UnsupportedModel.
    """
    formats = None if weights is None else (parse_weights(weights),)
    spec = resolve_spec(model, revision)
    here = parse_machine(machine, model_path=Path(model) if Path(model).is_dir() else None)
    here = drop_gpus(here) if no_gpu else here
    request = request_for(
        spec, here, context=context, batch=batch, ram=ram, gpu_memory=gpu_memory, weight_limits=weight_limits
    )
    plans = plan_all(spec, here, request, formats)
    return plans[choose(plans)]


def load(  # noqa: PLR0913  the interface's own keywords
    model: str | Path,
    *,
    weights: str = "native",
    ram: Size | None = None,
    gpu_memory: Size | Sequence[Size] | None = None,
    no_gpu: bool = False,
    weight_limits: Mapping[str, Size] | None = None,
    context: int | None = None,
    batch: int = 1,
    auto_class: str | None = None,
    revision: str | None = None,
) -> PreTrainedModel:
    """A transformers model that runs from wherever its weights fit: GPUs, main memory, disk.

    ``ram``: most resident memory of the whole process. ``gpu_memory``: most bytes of each GPU. ``weight_limits``: most
    bytes of weights at rest in a tier. ``context`` and ``batch``: tokens per sequence and sequences that memory is kept
    for. ``auto_class``: "AutoModel" and others; by default the class that the configuration names.
    ``model.outsize`` holds ``plan``, ``stats`` and ``close()``.

    Raises DoesNotFit before anything is loaded, DamagedModel, ModelNotFound, HubUnreachable, UnsupportedModel or
    UsageError.
    """
    opening = prepare(
        str(model),
        weights=weights,
        context=context,
        batch=batch,
        ram=ram,
        gpu_memory=gpu_memory,
        no_gpu=no_gpu,
        weight_limits=weight_limits,
        auto_class=auto_class,
        revision=revision,
    )
    return open_model(opening)


def prepare(  # noqa: PLR0913
    model: str,
    *,
    weights: str = "native",
    context: int | None = None,
    batch: int = 1,
    prompt: Callable[[Path], int] | None = None,
    on_download: Callable[[int, int], None] | None = None,
    on_convert: Callable[[int, int], None] = lambda done, total: None,
    new_tokens: int = 0,
    ram: Size | None = None,
    gpu_memory: Size | Sequence[Size] | None = None,
    no_gpu: bool = False,
    weight_limits: Mapping[str, Size] | None = None,
    auto_class: str | None = None,
    revision: str | None = None,
) -> Opening:
    """All that is decided before a weight is read. Downloads the model where it is not on this machine.

    Other ``weights`` than the model has are made once, into the cache, and found there from then on.

    ``prompt`` counts the tokens of the prompt, given the model's folder; with it, memory is kept for the prompt and
    ``new_tokens`` more, unless ``context`` asks for another length. ``on_download`` and ``on_convert`` get bytes done,
    and of how many.
    """
    format_ = parse_weights(weights)
    folder = folder_in(model, format_, revision, on_download, on_convert)
    spec = folder_spec(folder, auto_class)
    prompt_tokens = None
    if prompt is not None and folder.path is not None:
        prompt_tokens = max(prompt(folder.path), 1)
        # Where the count is an upper bound it may pass the model's positions, which the prompt itself does not.
        most = spec.max_positions or prompt_tokens + new_tokens
        context = context or min(prompt_tokens + new_tokens, most)
    machine = parse_machine("local", model_path=folder.path)
    machine = drop_gpus(machine) if no_gpu else machine
    request = request_for(
        spec,
        machine,
        context=context,
        batch=batch,
        prompt=prompt_tokens,
        ram=ram,
        gpu_memory=gpu_memory,
        weight_limits=weight_limits,
    )
    return Opening(folder, spec, machine, plan_one(spec, machine, request, format_), auto_class)


def folder_in(
    model: str,
    weights: Weights,
    revision: str | None = None,
    on_download: Callable[[int, int], None] | None = None,
    on_convert: Callable[[int, int], None] = lambda done, total: None,
) -> ModelFolder:
    """A model's folder in a weight format: found, downloaded or converted."""
    if weights == "native":
        return fetch_folder(model, revision, on_download)
    return converted_folder(model, weights, revision, on_download, on_convert)
