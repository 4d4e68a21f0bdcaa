"""Text with ``{field}`` in it. Nothing is evaluated: what stands between braces is a name, whatever it looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from outsize.errors import UsageError

# A doubled brace, a field, or a brace that is neither.
BRACES = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """``pieces``: texts and the field after each; the last has none."""

    pieces: tuple[tuple[str, str], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(field for _, field in self.pieces if field))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with the fields' values. Braces in values stay as they are."""
        return "".join(text + (values[field] if field else "") for text, field in self.pieces)


def parse_template(text: str) -> Template:
    """``{{`` and ``}}`` are braces, ``{name}`` is a field. Raises UsageError for any other brace."""
    pieces, before, end = [], "", 0
    for match in BRACES.finditer(text):
        before += text[end : match.start()]
        end = match.end()
        if match[1] is not None and match[1].strip():
            pieces.append((before, match[1].strip()))
            before = ""
        elif match[0] in ("{{", "}}"):
            before += match[0][0]
        else:
            raise UsageError(
                f"a brace at character {match.start() + 1} belongs to no field", need="{name}, or {{ and }} for braces"
            )
    return Template((*pieces, (before + text[end:], "")))
