"""What happens meanwhile, on stderr: lines, and bars where it is a terminal. Answers never come here."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from outsize.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from outsize.engine.request import DatasetProgress
    from outsize.models.spec import ModelSpec
    from outsize.planner.plan import Plan

Advance = Callable[[int, int], None]  # bytes done so far, of how many
GLYPHS = {"ram": ("▆", "R"), "disk": ("░", "d"), "rows": ("·", ".")}  # rows: looked up on disk, one by one
# Of a dataset, the share that must be done before what was measured alone says how long the rest will take.
TRUST = 0.5


def note(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


def writes_unicode(stream: TextIO) -> bool:
    """Whether a stream takes more than ASCII."""
    return "utf" in (stream.encoding or "").lower()


def layers(spec: ModelSpec, plan: Plan, *, unicode: bool = True) -> str:
    """Where every layer lies: ``embedding | blocks | head`` with a glyph for each module's home, then a legend."""

    def glyph(home: str) -> str:
        return home[-1] if home.startswith("gpu") else GLYPHS[home][0 if unicode else 1]

    looked_up = {group.module for group in plan.groups if group.residency == "cached"}
    marks = [glyph("rows" if m.name in looked_up else plan.homes[m.name]) for m in spec.modules]
    blocks = [place for place, module in enumerate(spec.modules) if module.role == "block"] or [len(marks)]
    first, last = blocks[0], blocks[-1] + 1
    parts = ("".join(part) for part in (marks[:first], marks[first:last], marks[last:]) if part)
    homes = Counter(plan.homes[module.name] for module in spec.blocks)
    words = [f"{glyph(home)} {home}: {count} blocks" for home, count in homes.items()]
    words += [f"{glyph('rows')} rows on disk"] if looked_up else []
    return f"{' '.join(parts)}   {', '.join(words)}"


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Callable[[str], Advance]]:
    """A function that gives a ``ByteBar`` for a label. All of them end with the block."""
    made: list[ByteBar] = []

    def bar(label: str) -> Advance:
        made.append(ByteBar(label))
        return made[-1].to

    try:
        yield (lambda label: lambda done, total: None) if quiet else bar
    finally:
        for one in made:
            one.close()


class ByteBar:
    """A bar while something moves bytes; where stderr is no terminal, one line at the end.

    It begins with the first ``to`` and ends when all are there, or at ``close``.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self._began = time.monotonic()
        self._done = 0
        self._over = False

    def to(self, done: int, total: int) -> None:
        """So many bytes have moved so far, of so many in all."""
        if self._over or not total:
            return
        self._done = max(self._done, done)
        if self._bar is None and sys.stderr.isatty():
            from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

            columns = (DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = _started(self._label, total, *columns)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Ends the bar, or says the line. A second close does nothing."""
        if self._over:
            return
        self._over = True
        if self._bar is not None:
            self._bar.stop()
        elif self._done:
            note(f"{self._label}: {format_size(self._done)} in {time.monotonic() - self._began:.1f} s")


class DatasetBar:
    """Rows done of all, sweeps, tokens a second and the time that is left; nothing where stderr is no terminal.

    The time that is left begins as the plan's estimate and learns on the way.
    """

    def __init__(self, rows: int, predicted_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._predicted_s = predicted_s
        self._clock = clock
        self._began = clock()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.progress import TimeElapsedColumn

            count = "{task.completed}/{task.total} rows"
            self._bar = _started("computing", rows, count, TimeElapsedColumn(), "{task.fields[words]}")

    def to(self, progress: DatasetProgress) -> None:
        """So far."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=progress.done, words=self.words(progress))

    def words(self, progress: DatasetProgress) -> str:
        """What stands after the bar."""
        elapsed = self._clock() - self._began
        left = remaining_s(progress.done / max(progress.rows, 1), elapsed, self._predicted_s)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
        sweeps = "1 sweep" if progress.sweeps == 1 else f"{progress.sweeps} sweeps"
        return f"{sweeps}, {progress.tokens / elapsed if elapsed else 0:.3g} tokens/s, {clock} left"

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()


def remaining_s(share: float, elapsed_s: float, predicted_s: float) -> float:
    """Seconds to come: ``(1 - share) x whole``, where whole goes over from the prediction to what was measured.

    ``whole = (1 - trust) x predicted + trust x elapsed / share`` with ``trust = min(share / 0.5, 1)``. Never less than
    what the measured pace of a dataset that is late says of a prediction that is over: then the pace alone counts.
    """
    if share <= 0:
        return max(predicted_s - elapsed_s, 0.0)
    trust = 1.0 if elapsed_s > predicted_s else min(share / TRUST, 1.0)
    return (1 - share) * ((1 - trust) * predicted_s + trust * elapsed_s / share)


def _started(label: str, total: int, *columns: str | ProgressColumn) -> Progress:
    """A bar that is drawn from now on. It leaves standard output alone, where answers may come meanwhile."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress

    bar = Progress(
        "{task.description}",
        BarColumn(bar_width=None),
        "{task.percentage:3.0f}%",
        *columns,
        console=Console(file=sys.stderr),
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )
    bar.add_task(label, total=total, words="")
    bar.start()
    return bar
