"""Pictures of a plan: a bar per tier in text, and the same as SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outsize.errors import OutsizeError, UsageError
from outsize.planner.plan import Plan, Usage
from outsize.sizes import GIB, format_size

WIDTH = 44
# What a bar is made of: word, field of Usage, glyph, glyph where only ASCII is understood, colour (terminal, file).
PARTS = (
    ("weights", "weights_bytes", "█", "#", "34", "#4878a8"),
    ("KV cache", "kv_bytes", "▓", "k", "32", "#6aa56a"),
    ("workspace", "workspace_bytes", "▒", "w", "33", "#d0a040"),
    ("experts", "expert_cache_bytes", "▚", "e", "36", "#50a8a0"),
    ("ring", "ring_bytes", "░", "r", "35", "#9868a8"),
    ("process", "overhead_bytes", "▪", "p", "90", "#909090"),
)
FREE = ("·", ".")


def bar(usage: Usage, *, unicode: bool = True, colour: bool = False, width: int = WIDTH) -> str:
    """One tier as text, ``width`` glyphs long: its parts in proportion, then what is free.

    A part that is there gets a glyph at least; what exceeds the capacity makes the bar full.
    """
    whole = max(usage.capacity_bytes, usage.total_bytes, 1)
    text, left = "", width
    for _, name, glyph, plain, code, _ in PARTS:
        size = getattr(usage, name)
        count = min(left, max(round(size / whole * width), 1)) if size else 0
        left -= count
        part = (glyph if unicode else plain) * count
        text += f"\033[{code}m{part}\033[0m" if colour and part else part
    return text + FREE[0 if unicode else 1] * left


def legend(usages: Sequence[Usage], *, unicode: bool = True) -> str:
    words = [
        f"{glyph if unicode else plain} {word}"
        for word, name, glyph, plain, *_ in PARTS
        if any(getattr(usage, name) for usage in usages)
    ]
    return "  ".join([*words, f"{FREE[0 if unicode else 1]} free"])


def tiers(plan: Plan, *, unicode: bool = True, colour: bool = False) -> list[str]:
    """A line per tier: its name, its bar, the bytes planned of those that may be used, and of what they consist."""
    lines = []
    for name, usage in plan.usage.items():
        made_of = ", ".join(
            f"{word} {format_size(getattr(usage, part))}" for word, part, *_ in PARTS if getattr(usage, part)
        )
        amount = f"{format_size(usage.total_bytes):>9} of {format_size(usage.capacity_bytes):>9}"
        lines.append(f"  {name:5} {bar(usage, unicode=unicode, colour=colour)} {amount}  {made_of}".rstrip())
    return lines


def plot(plans: Sequence[Plan], best: int, title: str, path: Path) -> None:
    """Write the bars of all plans as SVG or PNG. Raises UsageError for other suffixes, OutsizeError if it cannot."""
    names = [name for name in plans[0].usage if name != "disk"]
    figure = figure_class(path)(figsize=(9, 1.2 + 0.45 * len(plans) * (len(names) + 1)), layout="constrained")
    axes = figure.subplots(len(plans), 1, squeeze=False, sharex=True)[:, 0]
    for index, (plan, axis) in enumerate(zip(plans, axes, strict=True)):
        for row, name in enumerate(reversed(names)):
            usage, left = plan.usage[name], 0.0
            axis.barh(row, usage.capacity_bytes / GIB, color="none", edgecolor="#404040", linewidth=0.8, height=0.6)
            for word, part, *_, colour in PARTS:
                size = getattr(usage, part) / GIB
                axis.barh(row, size, left=left, color=colour, height=0.6, label=word if not (row or index) else None)
                left += size
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(("> " if index == best else "") + headline(plan), loc="left", fontsize=9)
    axes[-1].set_xlabel("GiB; the frame is what may be used")
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(PARTS), fontsize=8, frameon=False)
    save(figure, path)


def figure_class(path: Path) -> Any:
    """matplotlib's Figure, for a file. Raises UsageError for a suffix but .svg and .png, OutsizeError without it."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"cannot plot to {path.name!r}", need="a name that ends in .svg or .png")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OutsizeError("plotting needs matplotlib", remedy="pip install 'outsize[plot]'") from None
    return Figure


def save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutsizeError(f"cannot write {path}: {error.strerror}") from error


def headline(plan: Plan) -> str:
    if not plan.fits:
        return f"{plan.weights}: does not fit, lacks {format_size(plan.shortfall_bytes)}"
    disk = plan.usage["disk"].weights_bytes
    spilled = f", {format_size(disk)} on disk" if disk else ""
    return f"{plan.weights}: {plan.predicted.token_s:.3g} s/token, limited by {plan.predicted.bottleneck}{spilled}"
