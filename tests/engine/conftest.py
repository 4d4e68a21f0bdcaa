"""What every test of a running model gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint

import outsize
from outsize.machine.describe import parse_machine
from outsize.machine.detect import identity
from outsize.machine.profile import Profile, profile_path, save_profile


@pytest.fixture(autouse=True)
def surveyed_once(shared_surveys: None) -> None:
    """Models of a module are loaded again and again."""


@pytest.fixture(autouse=True, scope="module")
def plain_torch() -> Iterator[None]:
    """Plain torch, which gives transformers' own bits; test_kernels.py is about the compiled kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTSIZE_KERNELS", "torch")
        yield


@pytest.fixture(autouse=True, scope="module")
def divided() -> Iterator[None]:
    """Blocks of a few KB are streamed in parts, and single tensors and experts kept, as those of many MB are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outsize.models.tracing.parts.LEAST_BYTES", 0)
        patch.setattr("outsize.planner.fill.LEAST_BYTES", 1)
        patch.setattr("outsize.planner.footprint.EXPERT_BYTES", 1)  # two experts at a time
        yield


@pytest.fixture
def slow_drive(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's drive is slow and hops cost nothing: else a plan would use no GPU for models this small."""
    monkeypatch.setattr("outsize.machine.rates.HOP_S", 0.0)
    drive = parse_machine("local", model_path=own_cache).disk
    save_profile(Profile(identity(), disks={drive.uuid: 1e6}), profile_path(os.environ))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A small model, all of whose weights are on disk."""
    folder = write_checkpoint(tmp_path_factory.mktemp("llama"), ARCHITECTURES["llama"].make_model())
    with outsize.load(folder, no_gpu=True, weight_limits={"ram": 0}, context=64, batch=4) as model:
        yield model
