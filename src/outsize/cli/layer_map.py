"""Where every layer lies, as one line: a glyph per module, in the order of the forward pass."""

from __future__ import annotations

from outsize.models.spec import ModelSpec
from outsize.planner.plan import Plan

GLYPHS = {"ram": ("▆", "R"), "disk": ("░", "d")}
ROWS = ("·", ".")  # looked up on disk, row by row


def layers(spec: ModelSpec, plan: Plan, *, unicode: bool = True) -> str:
    """``embedding | blocks | head`` with a glyph for each module's home, and how many blocks rest where."""
    marks = [_mark(plan, module.name, unicode=unicode) for module in spec.modules]
    roles = [module.role for module in spec.modules]
    first = roles.index("block") if "block" in roles else len(roles)
    last = len(roles) - 1 - roles[::-1].index("block") if "block" in roles else len(roles) - 1
    parts = ("".join(marks[:first]), "".join(marks[first : last + 1]), "".join(marks[last + 1 :]))
    return f"{' '.join(part for part in parts if part)}   {legend(spec, plan, unicode=unicode)}"


def legend(spec: ModelSpec, plan: Plan, *, unicode: bool = True) -> str:
    """What the glyphs mean, and how many blocks each stands for."""
    homes: dict[str, int] = {}
    for module in spec.blocks:
        home = plan.homes[module.name]
        homes[home] = homes.get(home, 0) + 1
    words = [f"{_glyph(home, unicode=unicode)} {home}: {count} blocks" for home, count in homes.items()]
    if any(group.residency == "cached" for group in plan.groups):
        words.append(f"{ROWS[0 if unicode else 1]} rows on disk")
    return ", ".join(words)


def _mark(plan: Plan, module: str, *, unicode: bool) -> str:
    looked_up = any(group.residency == "cached" for group in plan.groups if group.module == module)
    return ROWS[0 if unicode else 1] if looked_up else _glyph(plan.homes[module], unicode=unicode)


def _glyph(home: str, *, unicode: bool) -> str:
    return home[-1] if home.startswith("gpu") else GLYPHS[home][0 if unicode else 1]
