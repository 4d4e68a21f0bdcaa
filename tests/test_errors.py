"""The error tree: as drawn in its docstring, with the exit codes that the command line promises."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

import outsize
from outsize import errors
from outsize.errors import DoesNotFit, OutsizeError, UsageError

CLASSES = dict(inspect.getmembers(errors, inspect.isclass))


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Name -> (parent, exit code), read from the drawing in the module's docstring."""
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([| `-]*)(\w+) +exit (\d)", line)
        if not found:
            continue
        depth, name, code = len(found[1]), found[2], int(found[3])
        path = [step for step in path if step[0] < depth]
        tree[name] = (path[-1][1] if path else None, code)
        path.append((depth, name))
    return tree


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    there = {
        name: (None if cls is OutsizeError else cls.__bases__[0].__name__, cls.exit_code)
        for name, cls in CLASSES.items()
    }
    assert drawn_tree() == there


def test_every_error_is_public() -> None:
    assert set(CLASSES) <= set(outsize.__all__)
    assert all(getattr(outsize, name) is cls for name, cls in CLASSES.items())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "the cache does not fit"),
        ({"need": "4 GiB"}, "the cache does not fit; need 4 GiB"),
        ({"have": "2 GiB"}, "the cache does not fit; have 2 GiB"),
        ({"remedy": "--batch 1"}, "the cache does not fit; try: --batch 1"),
        (
            {"need": "4 GiB", "have": "2 GiB", "remedy": "--batch 1"},
            "the cache does not fit; need 4 GiB, have 2 GiB; try: --batch 1",
        ),
    ],
)
def test_a_message_says_need_have_and_remedy(parts: dict[str, str], sentence: str) -> None:
    assert str(UsageError("the cache does not fit", **parts)) == sentence


def test_the_parts_of_a_message_can_be_read() -> None:
    error = DoesNotFit("no", need="4 GiB", have="2 GiB", remedy="less", shortfall_bytes=2 << 30)
    assert (error.what, error.need, error.have, error.remedy) == ("no", "4 GiB", "2 GiB", "less")
    assert error.shortfall_bytes == 2 << 30
    assert DoesNotFit("no").shortfall_bytes is None


def test_an_error_survives_the_way_to_another_process() -> None:
    error = DoesNotFit("no", need="4 GiB", shortfall_bytes=7)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.need, again.shortfall_bytes) == (str(error), "no", "4 GiB", 7)


@pytest.mark.parametrize("text", ["x" * 4_000_000, "a\nb\r\x1b[2J\0\u2028" * 1000, "\ud800" * 10_000, "é" * 3000])
def test_messages_are_one_line_of_bounded_length(text: str) -> None:
    for parts in ({}, {"need": text}, {"need": text, "have": text, "remedy": text}):
        message = str(OutsizeError(f"begin {text} end", **parts))
        assert len(message) <= errors.MOST_CHARACTERS
        assert message.isprintable()
        assert message.startswith("begin ")


def test_a_long_name_leaves_room_for_the_remedy() -> None:
    message = str(OutsizeError("x" * 10_000, need="4 GiB", remedy="download the model again"))
    assert message.endswith("; need 4 GiB; try: download the model again")


def test_what_a_shell_or_terminal_would_obey_is_escaped() -> None:
    assert errors.one_line("a\x1b[31m\nb\tc") == "a\\x1b[31m\\nb\\tc"
