from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_models import AS_TEXT, TALK, chat_model

from outsize.engine import chat_template
from outsize.engine.chat_template import as_messages, chat_tokens, render
from outsize.errors import DamagedModel, UsageError
from outsize.models.tracing.pretrained import load_tokenizer

BOS = "{{ '\\n' }}{{ messages[0].content }}"


def tokenizer(tmp_path: Path, *args: Any, **settings: Any) -> Any:
    return load_tokenizer(chat_model(tmp_path / "model", *args, **settings))


def test_the_template_makes_the_text_and_nothing_is_added(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    assert render(own, TALK) == AS_TEXT
    assert own.decode(list(chat_tokens(own, TALK))) == AS_TEXT


def test_special_tokens_come_once(tmp_path: Path) -> None:
    # A tokenizer that begins every text with a token of its own, and a template that writes it too.
    own = tokenizer(tmp_path, BOS)
    from tokenizers.processors import TemplateProcessing

    own.backend_tokenizer.post_processor = TemplateProcessing(single="\n $A", special_tokens=[("\n", 2)])
    assert own.encode("\nab") == [2, 2, 69, 70]
    assert chat_tokens(own, [{"role": "user", "content": "ab"}]) == (2, 69, 70)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([], "at least one"),
        ("text", "a list"),
        ([1], "message 1"),
        ([{"content": "x"}], "message 1"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": 7}], "no text"),
        ([{"role": "user", "content": "\ud800"}], "no text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}], "image_url"),
    ],
)
def test_what_is_no_conversation_says_why(value: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        as_messages(value)


def test_parts_of_text_become_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert as_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


def test_a_model_without_a_template_is_named(tmp_path: Path) -> None:
    own = tokenizer(tmp_path)
    own.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        render(own, TALK)


@pytest.mark.parametrize(
    ("template", "error", "word"),
    [
        ("{{ raise_exception('only users') }}", UsageError, "only users"),
        ("{{ messages[7].content.nothing }}", UsageError, "refuses"),
        ("{% for %}", DamagedModel, "cannot be read"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", UsageError, "refuses"),
    ],
)
def test_templates_that_fail_give_one_error(tmp_path: Path, template: str, error: Any, word: str) -> None:
    with pytest.raises(error, match=word):
        render(tokenizer(tmp_path, template), TALK)


def test_a_template_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DamagedModel, match="does not come to an end"):
        render(tokenizer(tmp_path, loops), TALK)
