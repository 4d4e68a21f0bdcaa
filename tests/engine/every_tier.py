"""Models run with their weights in every tier at once, forced by limits of weights per tier."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import outsize
from outsize.models.files.folder import open_folder
from outsize.models.survey_cache import folder_spec

HOMES: Mapping[str, set[str]] = {
    "ram": {"ram"},
    "disk": {"disk"},
    "ram and disk": {"ram", "disk"},
    "two GPUs, ram and disk": {"gpu0", "gpu1", "ram", "disk"},
}


def load(folder: Path, home: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """The model with its weights in all the tiers that ``home`` names. GPUs want the fixture ``slow_drive``."""
    spec = folder_spec(open_folder(folder), more.get("auto_class"))
    total = sum(m.runtime_bytes for m in spec.modules)
    block = min(b.runtime_bytes for b in spec.blocks)
    limits = {
        "ram": {},
        "disk": {"ram": 0},
        "ram and disk": {"ram": total - 3 * block // 2},  # of a streamed block, single tensors stay
        "two GPUs, ram and disk": {"gpu0": block, "gpu1": block, "ram": total - 5 * block // 2},
    }[home]
    if "gpu0" in limits:
        monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "64MiB,64MiB")
    more = {"context": 32, "batch": 2, **more}
    model = outsize.load(folder, no_gpu="gpu0" not in limits, weight_limits=limits, **more)
    assert {group.tier for group in model.outsize.plan.groups} == HOMES[home]
    return model
