from __future__ import annotations

from outsize.cli.table import table


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    rows = [("", "weights", "fits"), (">", "[bold]int8", "yes"), ("", "a", "x" * 200)]
    assert table(rows) == [
        "   weights     fits",
        ">  [bold]int8  yes",
        "   a           " + "x" * 200,
    ]
    assert table([("shots", "acc"), ("4", "50.0%")], "right") == ["shots    acc", "    4  50.0%"]
