from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from outsize.engine.request import GenerateRequest
from outsize.evals.fewshot.job import job_of
from outsize.evals.fewshot.task import Task
from outsize.evals.requests import Encoder, prefix_token
from outsize.models.tracing.pretrained import load_tokenizer

DEMO = Path(str(resources.files("outsize"))) / "demo_model"


def words(**special: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of words with the blank before them, which begins every text with <s>."""
    vocabulary = {word: n for n, word in enumerate(["<s>", "</s>", "<unk>", "a", " a", " b", " ", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+| +|<s>"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


NONE = SimpleNamespace()


def encoder(**special: Any) -> Encoder:
    return Encoder(words(bos_token="<s>", eos_token="</s>", **special), NONE, encoder_decoder=False)


def test_context_and_continuation_are_encoded_together_and_split() -> None:
    assert encoder().pair("a", " b") == ([0, 3], [5])
    assert encoder().pair("a b", " a b") == ([0, 3, 5], [4, 5])


def test_blanks_at_the_end_of_the_context_are_the_continuations() -> None:
    assert encoder().pair("a ", "b") == ([0, 3], [5])


def test_a_text_that_begins_with_the_special_token_gets_no_second_one() -> None:
    assert encoder().encode("<s>a") == [0, 3]
    assert encoder().prompt("a") == (0, 3)


@pytest.mark.parametrize("context", ["", " "])
def test_an_empty_context_is_the_prefix_token(context: str) -> None:
    assert encoder().pair(context, "b") == ([0], [7] if not context else [5])
    assert encoder().pair("", "<s>a") == ([0], [3])


def test_an_encoder_gets_the_context_and_a_decoder_the_rest() -> None:
    both = Encoder(words(bos_token="<s>"), NONE, encoder_decoder=True)
    assert both.pair("a", " b") == ([0, 3], [5])
    assert both.pair("a ", "b") == ([0, 3], [5])


def test_the_prefix_token_is_the_tokenizers_or_the_models() -> None:
    config = SimpleNamespace(eos_token_id=[5, 6])
    assert prefix_token(words(bos_token="<s>", eos_token="</s>"), config) == 0
    assert prefix_token(words(eos_token="</s>"), config) == 1
    assert prefix_token(words(), config) == 5
    assert prefix_token(words(), SimpleNamespace(eos_token_id=[])) is None


def test_requests() -> None:
    request = encoder().score_request("k", "a", [" b", " a"])
    assert not isinstance(request, str)
    assert request.id == "k"
    assert request.context == (0, 3)
    assert request.continuations == ((5,), (4,))
    assert "no tokens" in str(encoder().score_request("k", "a", [" b", ""]))
    none = Encoder(load_tokenizer(DEMO), NONE, encoder_decoder=False)
    assert "context is empty" in str(none.score_request("k", "", ["x"]))


def test_new_tokens_where_nobody_asked_for_a_number() -> None:
    def most(prompt: int, positions: int | None, *, both: bool = False) -> int:
        spec: Any = SimpleNamespace(max_positions=positions, encoder_decoder=both)
        return Encoder(words(bos_token="<s>"), NONE, encoder_decoder=both, spec=spec).new_tokens(range(prompt), 64)

    assert most(8, None) == most(8, 100) == 64
    assert most(8, 10) == 3  # the last one takes no position
    assert most(10, 10) == most(11, 10) == 1  # and what does not fit is refused for itself
    assert most(8, 10, both=True) == 10


@pytest.mark.parametrize(("said", "want"), [({}, 3), ({"max_new_tokens": 64}, 64)])
def test_fewshot_answers_end_where_positions_do(said: dict[str, int], want: int) -> None:
    known: dict[str, Any] = {"path": Path("t"), "choices": (), "choices_field": "", "metrics": (), "stop": ()}
    task = Task.model_construct(_fields_set=set(said), **known, **said)
    spec: Any = SimpleNamespace(max_positions=4, encoder_decoder=False)
    line: Any = SimpleNamespace(key="0", context="a")
    request = job_of(task).request(line, Encoder(words(bos_token="<s>"), NONE, encoder_decoder=False, spec=spec))
    assert isinstance(request, GenerateRequest)
    assert (len(request.prompt), request.max_new_tokens) == (2, want)
