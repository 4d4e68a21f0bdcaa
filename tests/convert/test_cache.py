from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, write_checkpoint

import outsize
from outsize.convert import cache
from outsize.convert.cache import cache_place, convert_model, converted_folder
from outsize.convert.source import Identity
from outsize.errors import ModelNotFound, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", ARCHITECTURES["llama"].make_model(), "sharded bin")


def test_converted_once_and_found_again(source: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted_folder(str(source), "int4")
    assert first.path is not None
    assert first.path.parent == own_cache / "converted"
    monkeypatch.setattr(cache, "convert", pytest.fail)
    assert converted_folder(str(source), "int4").path == first.path
    assert converted_folder(str(first.path), "int4").path == first.path  # it is so already


def test_another_format_or_a_changed_source_is_converted_anew(source: Path) -> None:
    first = converted_folder(str(source), "int4").path
    assert converted_folder(str(source), "int8").path != first
    os.utime(source / "pytorch_model-00002-of-00003.bin")
    assert converted_folder(str(source), "int4").path != first


def test_a_copy_in_another_format_is_not_converted_again(source: Path) -> None:
    int8 = converted_folder(str(source), "int8").path
    with pytest.raises(UsageError, match="quantised already; need int4, have int8"):
        outsize.load(str(int8), weights="int4", no_gpu=True)
    with pytest.raises(ModelNotFound):
        converted_folder(str(source / "nowhere"), "int4")


@pytest.mark.parametrize("home", ["ram", "disk", "gpu"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_runs_from_every_tier_as_the_package_runs_it(
    weights: str, home: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    if home == "gpu":
        monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "64MiB")
    limits: dict[str, Any] = {"ram": {}, "disk": {"ram": 0}, "gpu": {"ram": 0}}[home]
    copy = convert_model(str(source), weights).folder
    ids = torch.arange(5, 13)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        expected = theirs(ids).logits
    tokens = theirs.generate(ids, max_new_tokens=4, do_sample=False)
    with outsize.load(source, weights=weights, no_gpu=home != "gpu", weight_limits=limits, context=32) as model:
        torch.testing.assert_close(model(ids).logits, expected)
        assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), tokens)
        homes = set(model.outsize.plan.homes.values())
    assert {"ram": "ram", "disk": "disk", "gpu": "gpu0"}[home] in homes


def test_names_in_the_cache_are_plain() -> None:
    place = cache_place(Identity("some/odd name:é", "digest"), "int4")
    assert place.name.startswith("some--odd--name-int4-")
    assert cache_place(Identity("..", "digest"), "int4").name.startswith("model-int4-")
