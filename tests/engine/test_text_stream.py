from __future__ import annotations

from typing import Any

import pytest

from outsize.engine.text_stream import TextStream


class Bytes:
    """Tokens are bytes."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(tokens).decode(errors="replace")


def streamed(text: str, *stop: str) -> tuple[list[str], str, Any]:
    stream = TextStream(Bytes(), stop)
    return [stream.push(byte) for byte in text.encode()], stream.end(), stream


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🌍!", "🌍", "e\u0301a"])
def test_whole_characters_come_and_all_of_them(text: str) -> None:
    pieces, rest, _ = streamed(text)
    assert "".join(pieces) + rest == text
    assert "\ufffd" not in "".join(pieces)


def test_an_unfinished_character_comes_at_the_end() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(byte) for byte in "ü".encode()[:1]] == [""]
    assert stream.end() == "\ufffd"


@pytest.mark.parametrize(
    ("stops", "want"),
    [(("cd",), "ab"), (("xx", "d"), "abc"), (("abc",), ""), (("zz",), "abcdabcd"), (("dab", "bcda"), "a")],
)
def test_nothing_of_a_stop_string_is_told(stops: tuple[str, ...], want: str) -> None:
    pieces, rest, stream = streamed("abcdabcd", *stops)
    assert "".join(pieces) + rest == want
    assert stream.stopped == (want != "abcdabcd")


def test_what_only_began_like_a_stop_string_is_told_after_all() -> None:
    pieces, rest, stream = streamed("aab", "ab!", "aac")
    assert "".join(pieces) + rest == "aab"
    assert rest == "ab"
    assert not stream.stopped
