"""How far a dataset is: a bar on a terminal, with an estimate that begins as the plan's and learns on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from outsize.engine.request import DatasetProgress

# Of a dataset, the share that must be done before what was measured alone says how long the rest will take.
TRUST = 0.5


def remaining_s(share: float, elapsed_s: float, predicted_s: float) -> float:
    """Seconds to come: ``(1 - share) x whole``, where whole goes over from the prediction to what was measured.

    ``whole = (1 - trust) x predicted + trust x elapsed / share`` with ``trust = min(share / 0.5, 1)``. Never less than
    what the measured pace of a dataset that is late says of a prediction that is over: then the pace alone counts.
    """
    if share <= 0:
        return max(predicted_s - elapsed_s, 0.0)
    measured = elapsed_s / share
    trust = 1.0 if elapsed_s > predicted_s else min(share / TRUST, 1.0)
    return (1 - share) * ((1 - trust) * predicted_s + trust * measured)


class DatasetBar:
    """Rows done of all, sweeps, tokens a second and the time that is left; nothing where stderr is no terminal."""

    def __init__(self, rows: int, predicted_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._predicted_s = predicted_s
        self._clock = clock
        self._began = clock()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            shown = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} rows [{elapsed}, {postfix}]"
            self._bar = tqdm(total=rows, desc="computing", file=sys.stderr, bar_format=shown)

    def to(self, progress: DatasetProgress) -> None:
        """So far."""
        if self._bar is None:
            return
        self._bar.set_postfix_str(self.words(progress), refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def words(self, progress: DatasetProgress) -> str:
        """What stands behind the bar."""
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
            self._bar.close()
