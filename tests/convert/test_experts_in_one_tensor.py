"""Experts that a checkpoint holds in one tensor, quantised: each finds the settings of its module."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoints import LLAMA, Architecture, write_checkpoint

import outsize


def test_experts_of_two_group_sizes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = Architecture("granitemoe", {**LLAMA, **sizes}).make_model()  # groups of 64 and of 128
    write_checkpoint(tmp_path, model)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad(), outsize.load(tmp_path, weights="int8", no_gpu=True, weight_limits={"ram": 0}) as ours:
        want, got = model(ids).logits, ours(ids).logits
    assert (got - want).norm() < 0.05 * want.norm()
