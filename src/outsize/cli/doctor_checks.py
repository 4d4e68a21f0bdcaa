"""One line of ``outsize doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line. ``note``: it works, but could be better; ``broken``: it does not."""

    name: str
    value: str
    state: State = "ok"
    remedy: str = ""
