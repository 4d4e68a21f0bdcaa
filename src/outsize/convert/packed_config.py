"""The config.json of a converted checkpoint: the source's, with what compressed-tensors' readers must know."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from outsize.convert.recipe import Recipe
from outsize.models.formats import Packing
from outsize.models.quantization import METHOD, PACKED

EXPERT = re.compile(r"\.experts\.\d+\.")
PACKAGE = "0.20.0"  # of the package whose format this is


def packed_config(config: Mapping[str, Any], recipe: Recipe) -> bytes:
    """The file's content. Every Linear module is either a target or ignored, by name."""
    from outsize.models.tracing.linear_layers import linear_modules

    packings = recipe.packings
    ignored = [name for name in linear_modules(config) if name not in packings]
    body = {**config, "quantization_config": quantization_config(packings, ignored)}
    return (json.dumps(body, indent=2) + "\n").encode()


def quantization_config(packings: Mapping[str, Packing], ignored: Sequence[str]) -> dict[str, Any]:
    """One group of modules for each size of groups in them: all Linear ones, or by name where the sizes differ."""
    sizes = sorted({packing.group for packing in packings.values()}, reverse=True)
    groups = {}
    for place, size in enumerate(sizes):
        members = [name for name, packing in packings.items() if packing.group == size]
        bits = packings[members[0]].bits
        groups[f"group_{place}"] = {
            "targets": ["Linear"] if len(sizes) == 1 else list(dict.fromkeys(map(_target, members))),
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": size,
                "dynamic": False,
                "actorder": None,
                "observer": None,
            },
            "input_activations": None,
            "output_activations": None,
            "format": PACKED,
        }
    return {
        "quant_method": METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": PACKAGE,
    }


def _target(module: str) -> str:
    """What names a module; those of routed experts, which are thousands, by one expression for all layers."""
    if not EXPERT.search(module):
        return module
    parts = (r"\d+" if part.isdigit() else re.escape(part) for part in module.split("."))
    return "re:" + r"\.".join(parts) + "$"
