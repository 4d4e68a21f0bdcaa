"""Checkpoints that are quantised already: which of their weights are packed, and how.

compressed-tensors, weights alone, in integers of 4 and 8 bits; fp8 with a scale for each block of a weight; mxfp4.
Anything else is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outsize.errors import DamagedModel, UnsupportedModel
from outsize.models.formats import Packing

METHOD = "compressed-tensors"
METHODS = (METHOD, "fp8", "mxfp4")
PACKED, INTEGERS = "pack-quantized", "int-quantized"
BITS = (4, 8)
# What the package lets a group of the configuration be called, instead of spelling it out.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "W4A16": {"num_bits": 4, "strategy": "group", "group_size": 128},
    "W4A16_ASYM": {"num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": False},
    "W8A16": {"num_bits": 8, "strategy": "group", "group_size": 128},
}
REMEDY = (
    "the native checkpoint, or one in compressed-tensors' pack-quantized or int-quantized format, weights alone, "
    "in fp8 with blocks of scales, or in mxfp4"
)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights that some targets name are quantised. ``group`` is None for one scale per row."""

    bits: int
    group: int | None
    words: bool
    zero_points: bool

    def packing(self, inputs: int, scale: str) -> Packing:
        """The packing of a weight with that many inputs. Integers stored one to a byte are of 8 bits to a reader."""
        return Packing(self.bits if self.words else 8, self.group or inputs, self.words, scale, self.zero_points)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Which modules of a model are quantised, and how: schemes by target, and what is left out.

    A target is a module's name, a class's name, or a regular expression after ``re:``. In fp8 and mxfp4, which have
    neither, the stored tensors themselves say what is quantised; ``block``: outputs and inputs that share a scale of
    fp8.
    """

    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    method: str = METHOD
    block: tuple[int, int] = (1, 1)

    def scheme_of(self, module: str, classes: Sequence[str]) -> Scheme | None:
        """The scheme of a module of that name, whose class and bases have those names; None where it has none.

        As the package decides: a name before a regular expression before a class.
        """
        if any(target in classes or names(target, module) for target in self.ignore):
            return None
        targets = sorted(self.schemes, key=lambda target: ("re:" in target, target))
        by_name = (target for target in targets if names(target, module))
        by_class = (target for target in targets if target in classes)
        found = next(by_name, None) or next(by_class, None)
        return None if found is None else self.schemes[found]


def names(target: str, module: str) -> bool:
    """Whether a target names a module: its name, or a regular expression that its name begins with."""
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target.removeprefix("re:"), module) is not None
    except re.error as error:
        raise DamagedModel(f"quantization_config: {target!r} is no regular expression: {error}") from error


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """What a config.json says of quantised weights; None where it says nothing.

    Raises UnsupportedModel for what outsize cannot run, by name, and DamagedModel for what makes no sense.
    """
    if not (stated := config.get("quantization_config")):
        return None
    method = stated.get("quant_method", "unknown") if isinstance(stated, Mapping) else "unknown"
    if method not in METHODS:
        raise UnsupportedModel(f"checkpoints quantised by {method!r} are not supported", remedy=REMEDY)
    if method == METHOD:
        return _compressed_tensors(stated)
    _texts(stated.get("modules_to_not_convert") or (), "modules_to_not_convert")
    return Quantisation(method=method, block=_fp8_block(stated) if method == "fp8" else (1, 1))


def _fp8_block(stated: Mapping[str, Any]) -> tuple[int, int]:
    """Outputs and inputs that share a scale. Activations that others would round (dynamic) stay as they are here."""
    fmt, scheme, experts = (
        stated.get("fmt", "e4m3"),
        stated.get("activation_scheme", "dynamic"),
        stated.get("expert_dtype"),
    )
    if fmt != "e4m3":
        raise unsupported(f"the fmt {fmt!r}", "fp8")
    if scheme != "dynamic":
        raise unsupported(f"the activation_scheme {scheme!r}", "fp8")
    if experts not in (None, "fp8"):
        raise unsupported(f"experts in {experts!r}", "fp8")
    block = stated.get("weight_block_size")
    if block is None:
        raise unsupported("one scale for a whole weight (no weight_block_size)", "fp8")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise DamagedModel("quantization_config: weight_block_size", need="two numbers above 0", have=repr(block))
    return block[0], block[1]


def _compressed_tensors(stated: Mapping[str, Any]) -> Quantisation:
    for what in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _refuse_further(what, stated.get(what))
    status = stated.get("quantization_status", "compressed")
    if status != "compressed":
        raise unsupported(f"quantization_status {status!r}")
    groups = stated.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise DamagedModel("quantization_config has no config_groups")
    schemes: dict[str, Scheme] = {}
    for name, group in groups.items():
        targets, scheme = _group(name, group, stated.get("format"))
        schemes.update(dict.fromkeys(targets, scheme))
    return Quantisation(schemes, _texts(stated.get("ignore") or (), "ignore"))


def _group(name: str, group: object, whole: object) -> tuple[tuple[str, ...], Scheme]:
    """Targets and scheme of one entry of config_groups."""
    if isinstance(group, list):  # targets of a preset
        if name.upper() not in PRESETS:
            raise unsupported(f"the scheme {name!r}")
        return _texts(group, name), _scheme(PRESETS[name.upper()], whole)
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        raise unsupported(f"{name} without weights")
    for what in ("input_activations", "output_activations"):
        if group.get(what):
            raise unsupported(f"quantised activations ({what})")
    return _texts(group.get("targets") or (), name), _scheme(group["weights"], group.get("format") or whole)


def _scheme(weights: Mapping[str, Any], form: object) -> Scheme:
    if form not in (PACKED, INTEGERS):
        raise unsupported(f"the format {form!r}")
    bits, kind, group = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("group_size")
    if kind != "int" or bits not in BITS:
        raise unsupported(f"weights of type {kind!r} with {bits} bits")
    strategy = weights.get("strategy") or ("tensor" if group is None else "channel" if group == -1 else "group")
    if strategy not in ("group", "channel"):
        raise unsupported(f"the strategy {strategy!r}")
    if weights.get("dynamic"):
        raise unsupported("weights quantised while they are used (dynamic)")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise unsupported(f"inputs in another order (actorder {weights['actorder']!r})")
    if strategy == "group" and (type(group) is not int or group < 1):
        raise DamagedModel(f"quantization_config: the group_size {group!r} is none")
    symmetric = weights.get("symmetric", True)
    return Scheme(bits, group if strategy == "group" else None, form == PACKED, not symmetric)


def _refuse_further(what: str, stated: Any) -> None:
    """What else a checkpoint may have been put through: an empty entry, or one that says so, is nothing."""
    if not stated or (isinstance(stated, Mapping) and (stated.get("format") == "dense" or not any(stated.values()))):
        return
    raise unsupported(f"a {what}")


def _texts(stated: object, where: str) -> tuple[str, ...]:
    if not isinstance(stated, list | tuple) or not all(isinstance(text, str) for text in stated):
        raise DamagedModel(f"quantization_config: {where} is no list of names")
    return tuple(stated)


def unsupported(what: str, method: str = METHOD) -> UnsupportedModel:
    """The error that names what outsize cannot run."""
    return UnsupportedModel(f"checkpoints of {method} with {what} are not supported", remedy=REMEDY)
