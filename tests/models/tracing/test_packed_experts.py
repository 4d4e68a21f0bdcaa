"""Experts in fp8 and mxfp4: each found by itself, and what it stands for is what transformers makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Architecture
from published_formats import FP8, MXFP4, fp8, fused_experts, mxfp4, transformers_own, write_published
from safetensors import safe_open

from outsize.kernels.weights import PackedWeight
from outsize.models import tracing
from outsize.models.files.folder import open_folder
from outsize.models.spec import StoredTensor
from outsize.models.spec_json import spec_from_json, spec_to_json
from outsize.models.survey_cache import same_bytes
from outsize.models.tracing.recording import replay

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
PATH = "model.layers.1.mlp.experts"


def write_gpt_oss(folder: Path) -> Path:
    """As gpt-oss is published: experts [experts, out, in] in blocks, biases and all else in bfloat16."""
    model = Architecture("gpt_oss", SMALL, dtype=torch.bfloat16).make_model()
    return write_published(folder, model, mxfp4, MXFP4, fused_experts)


def write_qwen3_moe(folder: Path) -> Path:
    """As Qwen3's are published: a tensor for each expert, in fp8."""
    model = Architecture("qwen3_moe", SMALL, dtype=torch.bfloat16).make_model()
    return write_published(folder, model, fp8((8, 8)), {**FP8, "weight_block_size": [8, 8]})


def skeleton_of(path: Path) -> tuple[tracing.Skeleton, Any]:
    """The skeleton, and ``fetch``: reads a stored tensor by its name, or the part of one that is an expert's."""
    folder = open_folder(path)
    file = safe_open(path / "model.safetensors", "pt")

    def fetch(stored: StoredTensor) -> torch.Tensor:
        raw = (path / stored.file).read_bytes()[stored.offset : stored.offset + stored.nbytes]
        made = torch.frombuffer(bytearray(raw), dtype=getattr(torch, stored.dtype)).view(stored.shape)
        name, _, index = stored.name.partition("[")
        whole = file.get_tensor(name)
        assert torch.equal(made.view(torch.uint8), (whole[int(index[:-1])] if index else whole).view(torch.uint8))
        return made

    return tracing.skeleton_of(folder, same_bytes(folder)), fetch


@pytest.mark.parametrize(("write", "matrices"), [(write_gpt_oss, 1), (write_qwen3_moe, 2)])
def test_each_is_found(write: Any, matrices: int, tmp_path: Path) -> None:
    folder = write(tmp_path)
    skeleton, fetch = skeleton_of(folder)
    true = dict(transformers_own(folder).named_parameters())
    weights = {weight.name: weight for unit in skeleton.units for weight in unit.weights}
    for name, count in ((f"{PATH}.gate_up_proj", matrices), (f"{PATH}.down_proj", 1)):
        experts = weights[name].experts
        assert [len(of_one) for of_one in experts] == [count] * 4
        for index, of_one in enumerate(experts):
            made = [replay(matrix, fetch, PackedWeight) for matrix in of_one]
            assert all(isinstance(one, PackedWeight) for one in made)
            found = torch.cat([one + 0 for one in made])
            assert torch.equal(found.T if matrices == 1 else found, true[name][index])


@pytest.mark.parametrize("write", [write_gpt_oss, write_qwen3_moe])
def test_exact_bytes(write: Any, tmp_path: Path) -> None:
    folder = open_folder(write(tmp_path))
    skeleton = tracing.skeleton_of(folder, same_bytes(folder))
    spec = tracing.survey(skeleton, "tests/experts")
    assert spec.weight_bytes == sum(tensor.nbytes for tensor in folder.tensors)
    assert spec_from_json(spec_to_json(spec)) == spec
    (module,) = (m for m in spec.modules if m.name == PATH)
    shapes = {t.name.removeprefix(f"{PATH}."): t.shape for t in module.tensors if t.packing is not None}
    fused = {"gate_up_proj": (4, 64, 64), "down_proj": (4, 64, 32)}  # [matrices, out, in]
    assert shapes == (fused if spec.formats == {"mxfp4"} else {"gate_up_proj": (8, 24, 64), "down_proj": (4, 64, 24)})
    assert spec.parameters == sum(
        weight.numel() for weight in tracing.skeleton_of(folder, same_bytes(folder)).model.parameters()
    )
