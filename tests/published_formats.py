"""Small checkpoints in fp8 and mxfp4, as they are published, and what transformers itself multiplies them out to."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from checkpoints import write_checkpoint
from safetensors.torch import load_file
from transformers.integrations.mxfp4 import FP4_VALUES

MOST = 448.0  # of e4m3
Parts = Mapping[str, torch.Tensor]  # of a weight, by the ending of their names
Quantise = Callable[[torch.Tensor], Parts]


def fp8(block: tuple[int, int] = (16, 16), scale: torch.dtype = torch.float32) -> Quantise:
    """Each block of a weight [out, in] to bytes, and its scale beside it."""

    def quantise(weight: torch.Tensor) -> Parts:
        (out, inputs), (rows, columns) = weight.shape, block
        padded = torch.zeros(-(-out // rows) * rows, -(-inputs // columns) * columns)
        padded[:out, :inputs] = weight
        blocks = padded.unflatten(1, (-1, columns)).unflatten(
            0, (-1, rows)
        )  # [out / rows, rows, in / columns, columns]
        scales = (blocks.abs().amax((1, 3), keepdim=True) / MOST).clamp(min=1e-12).to(scale)
        values = (blocks / scales.float()).clamp(-MOST, MOST).flatten(2).flatten(0, 1)[:out, :inputs]
        inverse = scales[:, 0, :, 0].contiguous()
        return {"": values.contiguous().to(torch.float8_e4m3fn), "_scale_inv": inverse}

    return quantise


def mxfp4(weight: torch.Tensor) -> Parts:
    """Every 32 inputs of a weight [..., out, in] to sixteen bytes and an exponent."""
    grouped = weight.float().unflatten(-1, (-1, 32))
    most = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    exponents = torch.floor(torch.log2(most / 6)).add(1).clamp(-127, 127)
    table = torch.tensor(FP4_VALUES)
    codes = (grouped / exponents.exp2()).unsqueeze(-1).sub(table).abs().argmin(-1)  # [..., out, in / 32, 32]
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return {"_blocks": blocks.to(torch.uint8), "_scales": (exponents + 127).squeeze(-1).to(torch.uint8)}


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def matrices(name: str) -> bool:
    """Linear layers of blocks, and experts that are stored one by one; routers stay as they are."""
    return "layers." in name and name.endswith("proj.weight")


def fused_experts(name: str) -> bool:
    """gpt-oss': [experts, in, out] in transformers."""
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def write_published(
    folder: Path,
    model: Any,
    quantise: Quantise,
    stated: Mapping[str, Any],
    packs: Callable[[str], bool] = matrices,
    **config: Any,
) -> Path:
    """Writes ``model`` under the names of published checkpoints, with some of its weights quantised.

    ``stated``: the quantization_config. ``packs``: which weights, by name; those that are ``fused_experts`` are turned.
    """
    tensors: dict[str, torch.Tensor] = {}
    with TemporaryDirectory() as plain:
        model.save_pretrained(plain)
        for name, tensor in load_file(Path(plain) / "model.safetensors").items():
            weight = tensor.transpose(1, 2) if fused_experts(name) else tensor
            parts = quantise(weight) if packs(name) else {"": tensor}
            tensors |= {f"{name}{ending}": part for ending, part in parts.items()}
    return write_checkpoint(folder, model, state=tensors, config_changes={"quantization_config": stated, **config})


def transformers_own(folder: Path) -> Any:
    """The folder's model by transformers, which multiplies all weights out where it finds no GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")


def change_config(folder: Path, **changes: Any) -> None:
    """Changes what the folder's quantization_config says."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))
