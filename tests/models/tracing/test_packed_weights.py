"""Packed weights in a model: whole weights of Linear layers, as the configuration says; anything else is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from quantised import Scheme, change_config, write_quantised
from safetensors.torch import load_file, save_file

from outsize.errors import DamagedModel, ModelNotFound, UnsupportedModel
from outsize.models import tracing
from outsize.models.files.folder import open_folder
from outsize.models.files.packed_tensors import PackedTensor
from outsize.models.formats import Packing
from outsize.models.quantization import Quantisation
from outsize.models.quantization import Scheme as Found
from outsize.models.spec import StoredTensor
from outsize.models.survey_cache import folder_spec
from outsize.models.tracing.recording import Packed, copies, replay

BYTES = Quantisation({"Linear": Found(8, None, words=False, zero_points=False)}, ())


def stored(name: str, dtype: str, *shape: int) -> StoredTensor:
    return StoredTensor(name, dtype, shape, "f", 0, 0)


def rehearse(model: Any, state: dict[str, torch.Tensor], packed: str, config: Any = None) -> tracing.Skeleton:
    """The model's own load with one weight of its checkpoint in integers."""
    tensors: list[StoredTensor | PackedTensor] = []
    for name, tensor in state.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        one = stored(name, dtype, *tensor.shape)
        if name == packed:
            rows, inputs = tensor.shape
            scale = stored(f"{name}_scale", dtype, rows, 1)
            tensors.append(PackedTensor(name, (rows, inputs), stored(name, "int8", rows, inputs), scale, None))
        else:
            tensors.append(one)
    return tracing.rehearse(config or model.config, type(model), tensors, lambda a, b: True, None, BYTES)


def test_a_weight_and_what_it_is_made_from() -> None:
    model = ARCHITECTURES["llama"].make_model()
    name = "model.layers.1.mlp.up_proj.weight"
    skeleton = rehearse(model, model.state_dict(), name)
    spec = tracing.survey(skeleton, "tests/llama")
    (tensor,) = (t for m in spec.modules for t in m.tensors if t.packing is not None)
    assert (tensor.name, tensor.shape, tensor.stored, tensor.matmul) == (name, (48, 32), "float32", True)
    assert tensor.packing == Packing(8, 32, words=False, scale="float32")
    assert spec.origins[name].names == (name, f"{name}_scale")
    assert not spec.origins[name].copies
    assert spec.formats == {"int8"}
    assert spec.parameters == sum(weight.numel() for weight in model.parameters())


def test_scales_that_are_stored_in_another_type_are_cast() -> None:
    model = ARCHITECTURES["llama"].make_model()
    config = copy.copy(model.config)
    config.dtype = torch.bfloat16
    name = "model.layers.1.mlp.up_proj.weight"
    skeleton = rehearse(model, model.state_dict(), name, config)
    (weight,) = (w for unit in skeleton.units for w in unit.weights if w.packing is not None)
    assert isinstance(weight.expression, Packed)
    assert weight.expression.dtype == torch.bfloat16
    assert copies(weight.expression)
    (tensor,) = (t for m in tracing.survey(skeleton, "x").modules for t in m.tensors if t.packing is not None)
    assert (tensor.stored, tensor.runtime) == ("float32", "bfloat16")
    assert tensor.runtime_bytes == 48 * 32 + 48 * 2

    made = replay(
        weight.expression,
        lambda part: torch.ones(part.shape, dtype=getattr(torch, part.dtype)),
        lambda values, scale, zero_point, packing, shape, dtype: values * scale,
    )
    assert made.dtype == torch.bfloat16
    assert made.shape == (48, 32)


def test_a_weight_that_is_no_linear_layers() -> None:
    model = ARCHITECTURES["gpt2"].make_model()
    with pytest.raises(UnsupportedModel, match=r"c_fc\.weight is packed; need the weight of a Linear .* have Conv1D"):
        rehearse(model, model.state_dict(), "transformer.h.1.mlp.c_fc.weight")


def test_experts_that_transformers_stacks() -> None:
    config = {"hidden_size": 32, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}
    small = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
    read = tracing.read_config({"model_type": "mixtral", **config, **small})
    cls = tracing.model_class(read)
    model = cls._from_config(read)
    state = dict(model.state_dict())
    for layer in range(3):
        path = f"model.layers.{layer}.mlp"
        state[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = state.pop(f"{path}.gate.weight")
        both, down = state.pop(f"{path}.experts.gate_up_proj"), state.pop(f"{path}.experts.down_proj")
        for i in range(4):
            expert = f"model.layers.{layer}.block_sparse_moe.experts.{i}"
            state[f"{expert}.w1.weight"], state[f"{expert}.w3.weight"] = both[i].chunk(2)
            state[f"{expert}.w2.weight"] = down[i]
    with pytest.raises(UnsupportedModel, match=r"experts\.gate_up_proj is only partly packed"):
        rehearse(model, state, "model.layers.1.block_sparse_moe.experts.2.w1.weight")


def test_a_weight_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    folder = write_quantised(tmp_path, ARCHITECTURES["llama"].make_model())
    change_config(folder, ignore=["lm_head", "re:.*up_proj"])
    with pytest.raises(DamagedModel, match=r"up_proj\.weight is packed, but quantization_config does not name"):
        folder_spec(open_folder(folder))


def test_a_part_that_is_gone_or_has_another_shape(tmp_path: Path) -> None:
    folder = write_quantised(tmp_path, ARCHITECTURES["llama"].make_model(), Scheme(4, 16, symmetric=False))
    whole = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    for part in ("scale", "zero_point", "shape"):
        save_file({k: v for k, v in whole.items() if k != f"{name}_{part}"}, folder / "model.safetensors")
        with pytest.raises(DamagedModel, match=f"lacks {name}_{part}"):
            folder_spec(open_folder(folder))
    for part in ("packed", "scale", "zero_point"):
        cut = {f"{name}_{part}": whole[f"{name}_{part}"][:-1].clone()}
        save_file(whole | cut, folder / "model.safetensors")
        with pytest.raises(DamagedModel, match=f"{name}_({part}|shape)"):
            folder_spec(open_folder(folder))
    save_file(whole | {f"{name}_shape": torch.tensor([48, 31])}, folder / "model.safetensors")
    with pytest.raises(DamagedModel, match=r"up_proj\.weight has the wrong shape"):
        folder_spec(open_folder(folder))


def test_a_configuration_alone_says_too_little(tmp_path: Path) -> None:
    folder = write_quantised(tmp_path, ARCHITECTURES["llama"].make_model())
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="of a quantised model but no weights"):
        folder_spec(open_folder(folder))


def test_a_native_folder_of_the_same_model_is_native(tmp_path: Path) -> None:
    assert not folder_spec(open_folder(write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model()))).formats
