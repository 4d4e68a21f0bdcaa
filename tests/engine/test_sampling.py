from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch

from outsize.engine.request import GenerateRequest
from outsize.engine.sampling import End
from outsize.models.tracing.pretrained import load_tokenizer

DEMO = Path(str(resources.files("outsize"))) / "demo_model"


@pytest.mark.parametrize(("stop", "ends"), [("<unk>", True), ("a<unk>", True), ("b", False)])
def test_a_stop_string_may_be_a_special_token(stop: str, ends: bool) -> None:
    """As chat templates end a turn, though the text of an answer has no special tokens in it."""
    tokenizer = load_tokenizer(DEMO)
    tokens = [*tokenizer.encode("a"), 1]
    end = End([GenerateRequest("0", (5,), stop=(stop,))], tokenizer, begin=1)
    assert end(torch.tensor([[5, *tokens]]), None).tolist() == [ends]
    assert end.reached == [(2, "stop") if ends else (0, "")]
