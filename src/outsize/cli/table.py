"""Tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Literal


def table(rows: Iterable[Sequence[str]], justify: Literal["left", "right"] = "left") -> list[str]:
    """A line for each row. Columns are as wide as their longest cell, with two blanks between them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for row in rows:
        while len(grid.columns) < len(row):
            grid.add_column(justify=justify, no_wrap=True)
        grid.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=10_000, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(grid)
    return [line.rstrip() for line in capture.get().splitlines()]
