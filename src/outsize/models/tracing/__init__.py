"""The door to transformers: the one file that knows its internals.

It answers two questions about a configuration and the tensors of a checkpoint, without reading or allocating a weight:
how is each parameter made from the stored tensors (``rehearse``), and which modules does a forward pass visit, in which
order, with how much cache and workspace (``survey``). Renaming, prefixes, tying, dtype rules and conversions are all
transformers' own: its loader runs unmodified, over recording tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from outsize.errors import DamagedModel, ModelNotFound, OutsizeError, UnsupportedModel, UsageError, said
from outsize.models.dtypes import BYTES
from outsize.models.files.folder import ModelFolder
from outsize.models.files.packed_tensors import PackedTensor, merge, shapes_in
from outsize.models.quantization import Quantisation, read_quantisation
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.time_limit import time_limit
from outsize.models.tracing.experts import find_experts
from outsize.models.tracing.measure import measure
from outsize.models.tracing.module_specs import module_spec, name_of, origin_of
from outsize.models.tracing.packed_weights import settle
from outsize.models.tracing.pretrained import load_generation_config
from outsize.models.tracing.recording import RecordingTensor
from outsize.models.tracing.units import Unit, take_weights, units_of

CONFIG_S = 5.0  # that making sense of a configuration may take: those in use take milliseconds
MOST_LAYERS = 10_000  # a hundred times those of the deepest models; each costs time and memory before anything is read
Same = Callable[[StoredTensor, StoredTensor], bool]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A transformers model without weights, and how to make each. Units stand in the order of the forward pass."""

    model: PreTrainedModel
    units: tuple[Unit, ...]


def read_config(config: Mapping[str, Any]) -> Any:
    """A transformers configuration from the contents of a config.json.

    What it says of quantised weights is left out: they are recorded as if they were not, and packed again afterwards.
    Raises UnsupportedModel for a model type that transformers does not know (code in a model's folder is never run) and
    for a checkpoint that is quantised in a way that outsize cannot run.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise UnsupportedModel(
            f"model type {model_type!r} is not one that transformers {transformers.__version__} knows",
            remedy="a newer transformers; code that lies in a model's folder is never run",
        )
    read_quantisation(config)
    _check_layers(config)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        # transformers writes an infinite float as an object, because JSON has none, and decodes it when reading files.
        with time_limit(CONFIG_S, lambda: ValueError(f"it takes longer than {CONFIG_S:.0f} s")):
            plain = transformers.PreTrainedConfig._decode_special_floats(plain)
            return transformers.CONFIG_MAPPING[model_type].from_dict(plain)
    except Exception as error:  # a configuration may fail in as many ways as it has fields
        raise DamagedModel(f"config.json does not describe a {model_type} model: {said(error)}") from error


def _check_layers(config: Mapping[str, Any]) -> None:
    """Raises DamagedModel for numbers of layers that would be built for ever."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_layers(value)
        elif "layer" in str(name) and isinstance(value, int) and value > MOST_LAYERS and "size" not in str(name):
            raise DamagedModel(f"config.json: {name} is {value}", need=f"at most {MOST_LAYERS}")


def model_class(config: Any, auto_class: str | None = None) -> type[PreTrainedModel]:
    """The class to build: what ``auto_class`` maps to, else the config's architecture, else causal or encoder-decoder.

    Raises UsageError for an auto class that transformers does not have or that does not know the model.
    """
    if auto_class is not None:
        auto = getattr(transformers, auto_class, None)
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is None:
            raise UsageError(f"transformers has no auto class {auto_class!r}", remedy="AutoModel, AutoModelForCausalLM")
        if type(config) not in mapping:
            raise UsageError(f"{auto_class} has no {config.model_type} model")
        mapped: Any = mapping[type(config)]
        return mapped[0] if isinstance(mapped, list | tuple) else mapped  # type: ignore[no-any-return]
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    for auto in (AutoModelForSeq2SeqLM, AutoModelForCausalLM) if config.is_encoder_decoder else (AutoModelForCausalLM,):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]  # type: ignore[no-any-return]
    raise UnsupportedModel(
        f"no causal or encoder-decoder language model for {config.model_type!r}", remedy="name an auto_class"
    )


def config_tensors(config: Any, cls: type[PreTrainedModel]) -> tuple[StoredTensor, ...]:
    """The tensors that a checkpoint of this configuration would hold, tied ones once, where there is no checkpoint.

    Their data type is the config's; a config without one means float32. File and offset are empty.
    """
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with _quiet(), torch.device("meta"):
        model = cls._from_config(config, dtype=dtype)
    tied = set(model.all_tied_weights_keys)
    return tuple(
        StoredTensor(name, name_of(t.dtype), tuple(t.shape), "", 0, t.numel() * t.element_size())
        for name, t in model.state_dict().items()
        if name not in tied
    )


def skeleton_of(folder: ModelFolder, same: Same, auto_class: str | None = None) -> Skeleton:
    """The skeleton of a folder's model, its quantised weights packed. Raises as ``read_config`` and ``rehearse`` do.

    For a configuration alone it is of the checkpoint that the configuration describes.
    """
    config = read_config(folder.config)
    cls = model_class(config, auto_class)
    with _understood(f"{folder.origin}: transformers cannot build a {cls.__name__} as config.json describes it"):
        return _skeleton(folder, config, cls, same)


def _skeleton(folder: ModelFolder, config: Any, cls: type[PreTrainedModel], same: Same) -> Skeleton:
    quantisation = read_quantisation(folder.config)
    if quantisation is None:
        return rehearse(config, cls, folder.tensors or config_tensors(config, cls), same, folder.path)
    if not folder.tensors:
        raise ModelNotFound(f"{folder.origin}: has the configuration of a quantised model but no weights")
    tensors = merge(folder.tensors, quantisation, shapes_in(folder.path))
    return rehearse(config, cls, tensors, same, folder.path, quantisation)


def rehearse(
    config: Any,
    cls: type[PreTrainedModel],
    tensors: Sequence[StoredTensor | PackedTensor],
    same: Same,
    folder: Path | None = None,
    quantisation: Quantisation | None = None,
) -> Skeleton:
    """transformers' own load over recording tensors: the model on ``meta``, and each weight's expression.

    ``quantisation`` says how those of ``tensors`` that are packed are packed.
    Raises DamagedModel where the checkpoint lacks a weight, or has one of another shape: a weight is never made up.
    """
    recorded = {stored.name: RecordingTensor.of(stored, same) for stored in tensors if stored.dtype in BYTES}

    class Rehearsal(cls):  # type: ignore[misc]
        @staticmethod
        def _finalize_model_loading(model: Any, load_config: Any, info: Any) -> Any:
            _refuse_gaps(model, info)
            return cls._finalize_model_loading(model, load_config, info)

    # Its name and module are those of the class: transformers finds renamings by the one, and for a class of another
    # module than its own it uses none.
    Rehearsal.__name__, Rehearsal.__module__ = cls.__name__, cls.__module__
    with _quiet(), _sequential_load():
        model = Rehearsal.from_pretrained(None, config=config, state_dict=recorded, dtype="auto")
        _scale_at_load(model)
    model.__class__ = cls
    model.config.name_or_path = str(folder) if folder else ""
    if folder is not None and model.can_generate():
        model.generation_config = load_generation_config(folder) or model.generation_config
    weights = settle(find_experts(take_weights(model)), model, quantisation)
    return Skeleton(model, tuple(units_of(model, weights)))


def survey(skeleton: Skeleton, name: str) -> ModelSpec:
    """The ModelSpec of a skeleton: its units in the order of a forward pass on ``meta``, with cache and workspace."""
    model, config = skeleton.model, skeleton.model.config
    measured = measure(model, [(unit.name, unit.modules, unit.role, unit.stack) for unit in skeleton.units])
    by_name = {unit.name: unit for unit in skeleton.units}
    modules = tuple(module_spec(by_name[n], skeleton.units, measured) for n in measured.order)
    text = config.get_text_config(decoder=True)
    sizes: dict[str, int] = {}
    for module in modules:
        for tensor in module.tensors:
            sizes[tensor.stored] = sizes.get(tensor.stored, 0) + tensor.stored_bytes
    return ModelSpec(
        id=name,
        architecture=type(model).__name__,
        model_type=config.model_type,
        encoder_decoder=bool(config.is_encoder_decoder),
        max_positions=_positions(text),
        vocab_size=text.vocab_size,
        modules=modules,
        workspace=measured.workspace,
        resting=measured.resting,
        buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers() if b.device.type != "meta"),
        dtype=max(sizes, key=lambda dtype: sizes[dtype]),
        origins={weight.name: origin_of(weight) for unit in skeleton.units for weight in unit.weights},
    )


def _positions(config: Any) -> int | None:
    """How many positions a model has; None where that is not said, or said to be none in particular (-1)."""
    stated = getattr(config, "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def in_order(skeleton: Skeleton, spec: ModelSpec) -> Skeleton:
    """The skeleton with its units in the order of a spec that was surveyed from it earlier."""
    by_name = {unit.name: unit for unit in skeleton.units}
    if by_name.keys() != {module.name for module in spec.modules}:
        raise DamagedModel(f"the model's modules are not those of the spec of {spec.id}")
    return Skeleton(skeleton.model, tuple(by_name[module.name] for module in spec.modules))


def _refuse_gaps(model: Any, info: Any) -> None:
    """Missing weights and wrong shapes, before transformers would make them up.

    Not missing: what is tied to a weight that is there, and what the model's class says it makes itself (position
    tables of sines, biases of zeros).
    """
    if info.conversion_errors:
        name, error = sorted(info.conversion_errors.items())[0]
        # The last line says what transformers was doing, the one before it what went wrong.
        said = str(error).strip().splitlines()
        raise DamagedModel(f"{name} cannot be put together: {said[-2] if len(said) > 1 else said[-1]}")
    makes = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    missing = {name for name in info.missing_keys if not any(pattern.search(name) for pattern in makes)}
    for target, source in model.all_tied_weights_keys.items():
        if not {target, source} <= missing:
            missing -= {target, source}
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise DamagedModel(f"the checkpoint lacks {len(missing)} of the weights of {type(model).__name__}: {some}, ...")
    if info.mismatched_keys:
        name, have, need = sorted(info.mismatched_keys)[0]
        raise DamagedModel(f"{name} has the wrong shape", need=str(tuple(need)), have=str(tuple(have)))


def _scale_at_load(model: PreTrainedModel) -> None:
    """Does to the recorded weights what RWKV's first forward pass does to its own in place: it halves some for float16.

    Weights that are read anew for each pass would not keep that.
    """
    for module in model.modules():
        if callable(scale := getattr(module, "_rescale_layers", None)):
            scale()


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """Errors of transformers and torch that a configuration brings about, as DamagedModel."""
    try:
        yield
    except (OutsizeError, OSError, MemoryError):
        raise
    except Exception as error:  # a configuration may fail in as many ways as it has fields
        raise DamagedModel(f"{what}: {said(error)}", remedy="compare config.json with the published one") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' load reports and bars are about a load that does not happen."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _sequential_load() -> Iterator[None]:
    """transformers loads in threads unless this variable is set; dispatch modes and recordings are per thread."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before
