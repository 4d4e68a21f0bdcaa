"""Small quantised checkpoints, written by the compressed-tensors package itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams, is_module_quantized


@dataclass(frozen=True, slots=True)
class Scheme:
    """How to quantise. ``group``: inputs per scale; None for one scale per row."""

    bits: int = 4
    group: int | None = 16
    symmetric: bool = True
    form: str = "pack-quantized"

    def __str__(self) -> str:
        kind = "channel" if self.group is None else f"group {self.group}"
        return f"int{self.bits} {kind} {'symmetric' if self.symmetric else 'asymmetric'} {self.form}"

    def to_config(self, targets: Sequence[str]) -> dict[str, Any]:
        """One entry of config_groups."""
        strategy = {"strategy": "channel"} if self.group is None else {"strategy": "group", "group_size": self.group}
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, **strategy}
        return {"targets": list(targets), "weights": weights, "format": self.form}


SCHEMES = (
    Scheme(4, 16),
    Scheme(4, 16, symmetric=False),
    Scheme(4, None),
    Scheme(4, None, symmetric=False),
    Scheme(8, 16),
    Scheme(8, 16, symmetric=False),
    Scheme(8, None),
    Scheme(8, 16, form="int-quantized"),
    Scheme(8, 16, symmetric=False, form="int-quantized"),
    Scheme(8, None, symmetric=False, form="int-quantized"),
    Scheme(4, 16, form="int-quantized"),
)


def write_quantised(
    folder: Path,
    model: Any,
    scheme: Scheme = SCHEMES[0],
    *,
    ignore: Sequence[str] = ("lm_head",),
    groups: dict[str, Any] | None = None,
) -> Path:
    """Quantises the Linear layers of ``model``, in place, by the package, and writes it as the package does.

    ``groups``: config_groups where one scheme for all Linear layers is not what is wanted.
    """
    groups = groups or {"group_0": scheme.to_config(["Linear"])}
    config = QuantizationConfig(config_groups=groups, ignore=list(ignore), quantization_status="frozen")
    apply_quantization_config(model, config)
    with torch.no_grad():
        for module in model.modules():
            if is_module_quantized(module):
                _fill(module, module.quantization_scheme.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(folder)
    compressor.update_config(str(folder))
    return folder


def transformers_own(folder: Path, *, dequantize: bool = True) -> Any:
    """The folder's model by transformers and the package, all weights multiplied out.

    ``dequantize``: by transformers, as it loads; by the package at the first forward pass otherwise, which cannot load
    packed zero points (0.20).
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    how = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that both the folder and the call say how it is quantised
        return getattr(transformers, auto).from_pretrained(folder, **how)


def quantization_config(folder: Path) -> dict[str, Any]:
    """What the folder's config.json says."""
    stated: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return stated


def change_config(folder: Path, **changes: Any) -> None:
    """Changes what the folder's quantization_config says."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def _fill(module: Any, args: QuantizationArgs) -> None:
    """Scales and zero points from the least and the greatest weight of each group."""
    weight = module.weight.detach()
    grouped = weight.unflatten(-1, (-1, args.group_size)) if args.strategy == "group" else weight.unsqueeze(1)
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    module.weight_scale.copy_(scale)
    if not args.symmetric:
        module.weight_zero_point.copy_(zero_point)
