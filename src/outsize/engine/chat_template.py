"""Messages into the tokens that a model was trained on: by its own chat template, which is a stranger's program.

transformers runs templates in jinja2's sandbox; here they get a limit of time too, and whatever they raise becomes one
clear error. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outsize.engine.request import is_text
from outsize.errors import DamagedModel, UsageError, said
from outsize.models.files.tokenizer_limits import is_failure, tokenizer_errors
from outsize.models.time_limit import time_limit

Message = dict[str, Any]

SECONDS = 5.0  # that a template may take for one conversation; real ones take milliseconds
NO_TEMPLATE = "this model has no chat template"
WITHOUT = "give it a bare prompt, or put chat_template.jinja of an instruct model beside config.json"


def as_messages(value: Any) -> list[Message]:
    """Messages as templates take them, from what JSON has: ``[{"role": ..., "content": ...}, ...]``.

    A content of several parts becomes one text. Raises UsageError for anything that is no text: images and files are
    never fetched.
    """
    if not isinstance(value, list) or not value:
        raise UsageError("messages must be a list of at least one", have=type(value).__name__)
    return [_message(number, one) for number, one in enumerate(value, start=1)]


def chat_tokens(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """The tokens of a conversation up to where the assistant's answer begins.

    The template writes all special tokens, so the tokenizer adds none: there is one first-of-sequence token at most.
    ``variables``: more of what the template knows, such as ``enable_thinking``. Raises UsageError for a model without a
    template and for messages that its template refuses, DamagedModel for a template that cannot be run.
    """
    text = render(tokenizer, messages, tools=tools, variables=variables)
    with tokenizer_errors():
        return tuple(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation up to where the assistant's answer begins. Raises as ``chat_tokens``."""
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(NO_TEMPLATE, remedy=WITHOUT)

    def late() -> DamagedModel:
        return DamagedModel("the model's chat template does not come to an end", need=f"{SECONDS:g} s at most")

    known: Mapping[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    own = {name: value for name, value in (variables or {}).items() if name not in known and name != "chat_template"}
    try:
        with time_limit(SECONDS, late):
            text = tokenizer.apply_chat_template(list(messages), tools=list(tools) if tools else None, **own, **known)
    except DamagedModel:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if type(error).__name__ == "TemplateSyntaxError":
            raise DamagedModel(f"the model's chat template cannot be read: {said(error)}") from error
        raise UsageError(
            f"the model's chat template refuses these messages: {said(error)}",
            remedy="other roles, or another order of them",
        ) from error
    if not isinstance(text, str):
        raise DamagedModel("the model's chat template gives no text", have=type(text).__name__)
    return text


def _message(number: int, value: Any) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        raise UsageError(f"message {number} is none", need='{"role": "user", "content": "..."}')
    message = dict(value)
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = content = "".join(_part(number, part) for part in content)
    if content is None and not message.get("tool_calls"):
        raise UsageError(f"message {number} has no content")
    if content is not None and not is_text(content):
        raise UsageError(f"the content of message {number} is no text", have=type(content).__name__)
    return message


def _part(number: int, part: Any) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UsageError(f"message {number} has a part that is no text", have=str(kind), remedy="text alone")
