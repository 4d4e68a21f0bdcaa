"""Bodies that nobody should send: types, sizes, depth, unicode. The same seed gives the same ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/tokenize",
    "/detokenize",
)
FIELDS = (
    "model messages prompt input max_tokens max_completion_tokens max_output_tokens temperature top_p top_k min_p n "
    "stop stop_sequences stream stream_options seed logprobs top_logprobs logit_bias echo suffix best_of tools "
    "tool_choice response_format text system instructions user presence_penalty frequency_penalty repetition_penalty "
    "chat_template_kwargs tokens content add_special_tokens previous_response_id"
).split()
TEXTS = ("", "a", "jift", "\ud800", "\x00", "\u202e", "🌍" * 9, "x" * 5000, "{{ 7*7 }}", "<think>", "../../etc/passwd")
NUMBERS = (0, 1, -1, 2**31, 2**63, -(2**63), 10**300, 0.5, 1e308, -0.0, 3)
GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "jift"}],
    "prompt": "jift ->",
    "input": "jift",
    "max_tokens": 2,
    "max_output_tokens": 2,
    "tokens": [5, 6],
}


def hostile(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """A path and a body each."""
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.choice(PATHS), _body(rng)


def _body(rng: random.Random) -> bytes:
    kind = rng.randrange(12)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return rng.choice([b"[", b"{", b'{"a":', b'{"messages":['])[:] * rng.choice([1, 50, 20_000])
    if kind == 2:
        return json.dumps(_value(rng, 0)).encode()
    if kind == 3:
        return rng.choice([b"", b"null", b"NaN", b'{"n": NaN}', b'{"prompt": 1' + b"0" * 6000 + b"}", b'{"a":1,"a":2}'])
    body = dict(GOOD)
    for name in rng.sample(FIELDS, rng.randrange(1, 4)):
        body[name] = _value(rng, 0)
    text = json.dumps(body)
    if kind == 4:  # cut, or with bytes of its own in the middle
        at = rng.randrange(len(text))
        return text.encode()[:at] + rng.choice([b"", b"\xff", b"\x00"]) + text.encode()[at + 1 :]
    return text.encode()


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(9 if depth < 4 else 5)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice([True, False, None])
    if kind == 3:
        return rng.choice(TEXTS) * rng.randrange(3)
    if kind == 4:
        return rng.choice([float("nan"), float("inf"), [], {}])
    if kind == 5:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(6))]
    if kind == 6:
        return {rng.choice(FIELDS): _value(rng, depth + 1) for _ in range(rng.randrange(6))}
    if kind == 7:
        role = rng.choice(["user", "assistant", "system", "tool", "developer", "judge", 7])
        return [{"role": role, "content": _value(rng, depth + 1), "tool_calls": _value(rng, depth + 1)}]
    parts = ["type", "text", "json_schema", "json_object", "function", "name", "schema", "tool_result", "format"]
    return {rng.choice(parts): rng.choice([_value(rng, depth + 1), rng.choice(parts)]) for _ in range(4)}
