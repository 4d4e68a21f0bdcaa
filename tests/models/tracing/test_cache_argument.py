"""The cache argument is found whatever transformers calls it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from outsize.models.tracing.cache_argument import NAMES, cache_argument, cache_in, with_cache


def test_the_name_is_in_the_signature() -> None:
    def newest(input_ids: Any, cache: Any = None) -> None: ...
    def older(input_ids: Any, past_key_values: Any = None) -> None: ...
    def mamba(input_ids: Any, cache_params: Any = None) -> None: ...
    def none(input_ids: Any, **kwargs: Any) -> None: ...

    found = [cache_argument(SimpleNamespace(forward=forward)) for forward in (newest, older, mamba, none)]
    assert found == ["cache", "past_key_values", "cache_params", None]
    with pytest.raises(TypeError, match="takes no KV cache"):
        with_cache(SimpleNamespace(forward=none), DynamicCache())


@pytest.mark.parametrize("name", NAMES)
def test_keyword_arguments_by_every_name(name: str) -> None:
    cache = DynamicCache()
    assert cache_in({"input_ids": 1, name: cache}) is cache
    assert cache_in({"input_ids": 1, name: None}) is None


def test_what_has_no_cache() -> None:
    assert cache_in({}) is None
    assert cache_in((torch.zeros(1),)) is None
    assert cache_in(BaseModelOutputWithPast(last_hidden_state=torch.zeros(1))) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_models_take_and_give_it_without_a_warning(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    arch = ARCHITECTURES[kind]
    model = arch.make_model()
    ids = torch.tensor([[5, 6, 7]])
    inputs = {"input_ids": ids, "decoder_input_ids": ids} if arch.encoder_decoder else {"input_ids": ids}
    with torch.no_grad(), caplog.at_level(logging.WARNING, logger="transformers"):
        first = model(**inputs, use_cache=True)
        assert cache_in(first).get_seq_length() == 3
        second = model(**inputs, **with_cache(model, cache_in(first)))
    assert cache_in(second).get_seq_length() == 6
    assert caplog.messages == []
