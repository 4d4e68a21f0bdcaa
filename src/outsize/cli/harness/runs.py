"""Datasets for one model, each from its plan to the closing of the model, and what they took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from outsize.cli import layer_map, progress
from outsize.cli.dataset_bar import DatasetBar
from outsize.engine.loader import Opening, check_fits, open_model
from outsize.engine.request import DatasetProgress, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.errors import DoesNotFit
from outsize.evals.dataset_model import dataset_of, prepare_dataset
from outsize.models.files.folder import ModelFolder
from outsize.options import LoadOptions
from outsize.sizes import format_size

# Resident once torch and transformers are imported, and nothing else: plans count that much for the process by then.
PLANNED_RESIDENT = 250 << 20


@dataclass(slots=True)
class Effort:
    """What it took so far. ``requests``: that the model computed, each once."""

    sweeps: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    predicted_seconds: float = 0.0
    requests: int = 0
    tokens: int = 0


class Work:
    """A model that is opened for each dataset anew, with the room that makes it fastest, and closed behind it.

    ``verbose``: says on stderr where the layers lie and what is predicted. ``effort``: what all datasets took.
    """

    def __init__(self, folder: ModelFolder, options: LoadOptions, *, verbose: bool = False) -> None:
        self.effort = Effort()
        self._folder, self._options, self._verbose = folder, options, verbose

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[ScoreResult]:
        """The results, as they are ready. Raises DoesNotFit, DamagedModel and the like."""
        return self._results(requests, lambda model, tell: model.outsize.score(requests, progress=tell))

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[GenerateResult]:
        """The same for text."""
        return self._results(
            requests, lambda model, tell: model.outsize.generate(requests, tokenizer=tokenizer, progress=tell)
        )

    def _results(
        self,
        requests: Sequence[ScoreRequest] | Sequence[GenerateRequest],
        compute: Callable[[Any, Callable[[DatasetProgress], None]], Any],
    ) -> Iterator[Any]:
        if not requests:
            return
        began = time.monotonic()
        others = max(resident_bytes() - PLANNED_RESIDENT, 0)
        options = beside(self._options, others)
        opening = prepare_dataset(self._folder, dataset_of(requests), options)
        _check_fits(opening, 0 if options.ram is None else others)
        model: Any = open_model(opening)
        bar = None
        try:
            predicted = model.outsize.predict(requests)
            if self._verbose:
                _say(opening, len(requests), predicted)
            bar = DatasetBar(len(requests), predicted.seconds)
            seen = [DatasetProgress(0, len(requests), 0, 0, 0)]

            def tell(now: DatasetProgress) -> None:
                seen[0] = now
                bar.to(now)

            with closing(compute(model, tell)) as results:
                yield from results
            stats, effort = model.outsize.stats, self.effort
            effort.sweeps += stats.sweeps
            effort.disk_bytes += stats.bytes_read
            effort.requests += len(requests)
            effort.tokens += seen[0].tokens
            effort.predicted_seconds += predicted.seconds
            effort.seconds += time.monotonic() - began
        finally:
            if bar is not None:
                bar.close()
            model.outsize.close()


def beside(options: LoadOptions, others: int) -> LoadOptions:
    """A budget less the bytes that no plan counts: of the harness, its libraries and documents."""
    if options.ram_bytes is None:
        return options
    return replace(options, ram=max(options.ram_bytes - others, 1))


def resident_bytes() -> int:
    """Resident memory of the process: VmRSS of /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:")), 0)


def _check_fits(opening: Opening, others: int) -> None:
    """Raises DoesNotFit, with a word of the bytes that were taken off the budget."""
    try:
        check_fits(opening.spec, opening.plan)
    except DoesNotFit as error:
        if not others:
            raise
        raise DoesNotFit(
            f"{error.what} beside the harness, which holds {format_size(others)}",
            need=error.need,
            have=error.have,
            remedy=f"{error.remedy}; and {format_size(others)} more of ram for the harness",
            shortfall_bytes=error.shortfall_bytes,
        ) from error


def _say(opening: Opening, requests: int, predicted: Any) -> None:
    progress.note(layer_map.layers(opening.spec, opening.plan, unicode="utf" in (sys.stderr.encoding or "").lower()))
    progress.note(
        f"{requests} requests in {predicted.micro_batches} micro-batches: predicted {predicted.sweeps} sweeps, "
        f"{predicted.seconds:.3g} s"
    )
