"""A rehearsed forward pass. What it says of the cache is held against real ones in tests/run/test_parity.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint

from outsize.errors import UnsupportedModel
from outsize.models import tracing
from outsize.models.files.folder import open_folder
from outsize.models.spec import CacheSpec, ModelSpec
from outsize.models.survey_cache import folder_spec
from outsize.models.tracing.measure import _question, measure


def survey(folder: Path, name: str) -> ModelSpec:
    return folder_spec(open_folder(write_checkpoint(folder, ARCHITECTURES[name].make_model())))


def test_cache_per_block(tmp_path: Path) -> None:
    gemma = survey(tmp_path / "gemma", "gemma2").blocks  # keys and values, 2 heads of 8 in float32
    assert [(b.cache.per_token, b.cache.window) for b in gemma] == [(128, 6), (128, None)] * 2
    latent = survey(tmp_path / "deepseek", "deepseek_v3")
    assert latent.kv_bytes_per_token > 0
    t5 = survey(tmp_path / "t5", "t5")  # 4 heads of 8 in float32, of its own tokens and of the encoder's
    decoder = [b.cache for b in t5.blocks if b.stack == "decoder"]
    assert decoder == [CacheSpec(per_token=256, cross_per_token=256)] * 3
    assert not any(m.cache.per_token for m in t5.modules if m.stack == "encoder")


def test_a_model_without_a_cache(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, ARCHITECTURES["bert"].make_model())
    assert folder_spec(open_folder(folder), "AutoModel").kv_bytes_per_token == 0


def test_caches_that_cannot_be_told_apart_are_counted_together(tmp_path: Path) -> None:
    """Where layers and caches are not as many (some share one), their sum stands with the first block."""
    folder = open_folder(write_checkpoint(tmp_path, ARCHITECTURES["llama"].make_model()))
    config = tracing.read_config(folder.config)
    cls = tracing.model_class(config)
    skeleton = tracing.rehearse(config, cls, folder.tensors, lambda a, b: True)
    blocks = [unit for unit in skeleton.units if unit.role == "block"][:3]
    measured = measure(skeleton.model, [(u.name, u.modules, u.role, u.stack) for u in blocks])
    per_token = [measured.cache[u.name].per_token for u in blocks]
    assert per_token == [folder_spec(folder).kv_bytes_per_token, 0, 0]


def test_the_workspace_grows_with_the_prompt(tmp_path: Path) -> None:
    workspace = survey(tmp_path, "llama").workspace
    sizes = [workspace.bytes_for(1, tokens) for tokens in (1, 10, 100)]
    assert sizes == sorted(sizes)
    assert sizes[2] > 100 * 4 * 48  # at least the widest activation, of 48 floats a token
    assert workspace.bytes_for(3, 10) == 3 * sizes[1]


def test_a_model_that_cannot_run_on_shapes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ARCHITECTURES["llama"].make_model()
    write_checkpoint(tmp_path, model)

    def forward(self: Any, *_: Any, **__: Any) -> Any:
        raise ValueError("look at the data")

    monkeypatch.setattr(type(model.model), "forward", forward)
    with pytest.raises(UnsupportedModel, match="cannot be measured on shapes alone: ValueError: look at the data"):
        folder_spec(open_folder(tmp_path))


def test_a_model_that_computes_with_a_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As xLSTM in bfloat16: the pass with a cache counts for both, cache included."""
    model = ARCHITECTURES["llama"].make_model()
    write_checkpoint(tmp_path / "as it is", model)
    write_checkpoint(tmp_path / "cached", model)
    usual = folder_spec(open_folder(tmp_path / "as it is"))
    plain = type(model.model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("use_cache"):
            raise RuntimeError("expected scalar type torch.float32 but found torch.bfloat16")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", forward)
    monkeypatch.setenv("OUTSIZE_CACHE", str(tmp_path / "other"))
    spec = folder_spec(open_folder(tmp_path / "cached"))
    assert [b.cache for b in spec.blocks] == [b.cache for b in usual.blocks]
    assert spec.resting.bytes_for(1, 40) >= usual.resting.bytes_for(1, 40)


def test_an_operation_is_asked_once_for_equal_shapes_and_only_where_its_result_is_new() -> None:
    add, view, here = torch.ops.aten.add.Tensor, torch.ops.aten.view.default, torch.zeros(2)
    there = torch.empty(2, device="meta")
    assert _question(add, (there, there), {}) == _question(add, (there.clone(), there), {})
    assert _question(add, (there, torch.empty(3, device="meta")), {}) != _question(add, (there, there), {})
    assert _question(view, (there, [2]), {}) is None
    assert _question(torch.ops.aten.add_.Tensor, (there, there), {}) is None
    assert _question(add, (there, here), {}) is None
    assert _question(add, (there, bytearray()), {}) is None
