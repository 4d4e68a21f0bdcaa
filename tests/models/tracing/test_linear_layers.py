from __future__ import annotations

from typing import Any

import pytest
from checkpoints import ARCHITECTURES

from outsize.errors import UnsupportedModel
from outsize.models.tracing.linear_layers import linear_modules


def config(name: str) -> dict[str, Any]:
    return ARCHITECTURES[name].make_config().to_dict()


def test_every_linear_layer_is_named_and_nothing_else() -> None:
    names = linear_modules(config("opt-350m"))
    assert {"lm_head", "model.decoder.project_in", "model.decoder.layers.3.self_attn.q_proj"} <= set(names)
    assert len(names) == 3 + 4 * 6
    assert linear_modules(config("gpt2")) == ("lm_head",)


def test_a_model_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedModel, match="odd"):
        linear_modules({"model_type": "odd"})
