"""The Python face: ``outsize.plan`` and ``outsize.load``. Nothing here imports torch until a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from outsize.convert.cache import converted_folder
from outsize.engine.loader import Opening, open_model
from outsize.models.files.folder import ModelFolder
from outsize.models.resolve import fetch_folder, resolve_spec
from outsize.models.survey_cache import folder_spec
from outsize.options import LoadOptions, Size
from outsize.planner.plan import Plan
from outsize.planner.planner import choose, plan_all, plan_one

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Advance = Callable[[int, int], None]  # bytes done, and of how many


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
    options = LoadOptions(
        weights=weights,
        context=context,
        batch=batch,
        ram=ram,
        gpu_memory=gpu_memory,
        no_gpu=no_gpu,
        weight_limits=weight_limits,
        revision=revision,
    )
    spec = resolve_spec(model, revision)
    here = options.machine(machine, Path(model) if Path(model).is_dir() else None)
    plans = plan_all(spec, here, options.request(spec, here), None if weights is None else (options.format,))
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
    options = LoadOptions(
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
    return open_model(prepare(str(model), options))


def prepare(
    model: str,
    options: LoadOptions,
    *,
    prompt: Callable[[Path], int] | None = None,
    new_tokens: int = 0,
    on_download: Advance | None = None,
    on_convert: Advance = lambda done, total: None,
) -> Opening:
    """All that is decided before a weight is read. Downloads the model where it is not on this machine.

    ``prompt`` counts the tokens of the prompt, given the model's folder; with it, memory is kept for the prompt and
    ``new_tokens`` more, unless ``context`` asks for another length. ``on_download`` and ``on_convert`` get bytes done,
    and of how many.
    """
    folder = folder_in(model, options, on_download, on_convert)
    spec = folder_spec(folder, options.auto_class)
    if prompt is not None and folder.path is not None:
        tokens = max(prompt(folder.path), 1)
        # A prompt of more tokens than positions is refused afterwards, in words of its own.
        most = min(tokens + new_tokens, spec.max_positions or tokens + new_tokens)
        options = replace(options, prompt=tokens, context=options.context or most)
    machine = options.machine(model_path=folder.path)
    plan = plan_one(spec, machine, options.request(spec, machine), options.format)
    return Opening(folder, spec, machine, plan, options.auto_class)


def folder_in(
    model: str,
    options: LoadOptions,
    on_download: Advance | None = None,
    on_convert: Advance = lambda done, total: None,
) -> ModelFolder:
    """A model's folder in a weight format: found, downloaded, or converted once and kept in the cache."""
    if options.format == "native":
        return fetch_folder(model, options.revision, on_download)
    return converted_folder(model, options.format, options.revision, on_download, on_convert)
