from __future__ import annotations

import pytest

from outsize.errors import UsageError
from outsize.evals.fewshot.template import parse_template


def test_fields_are_filled_and_braces_stay() -> None:
    template = parse_template("{a} and {{b}} and { c d }{a}")
    assert template.fields == ("a", "c d")
    assert template.fill({"a": "1", "c d": "{a}", "b": "no"}) == "1 and {b} and {a}1"
    assert parse_template("none").fields == ()
    assert parse_template("{{{a}}}").fill({"a": "x"}) == "{x}"


def test_nothing_is_evaluated() -> None:
    # str.format would reach attributes, items, conversions and widths by these names.
    for name in ("a.__class__", "a[0]", "a!r", "a:>1000000000", "0"):
        template = parse_template(f"{{{name}}}")
        assert template.fields == (name,)
        assert template.fill({name: "v"}) == "v"


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "{ }", "{a{b}}}"])
def test_a_brace_of_no_field(text: str) -> None:
    with pytest.raises(UsageError, match="brace at character"):
        parse_template(text)
