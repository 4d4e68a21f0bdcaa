"""A dataset on its way through a model: planned, loaded, computed, closed; and lines in, what is missing, rows out."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from outsize.engine.loader import Opening, check_fits, open_model
from outsize.engine.request import DatasetProgress, GenerateRequest, ScoreRequest
from outsize.errors import DoesNotFit, UsageError
from outsize.evals.dataset_model import dataset_of, prepare_dataset
from outsize.evals.fingerprint import fingerprint, tokenizer_fingerprint
from outsize.evals.records import digest
from outsize.evals.requests import Encoder
from outsize.evals.results import Journal
from outsize.machine.detect import identity
from outsize.machine.history import history_path, remember
from outsize.models.files.folder import ModelFolder
from outsize.models.survey_cache import folder_spec
from outsize.options import LoadOptions
from outsize.progress import DatasetBar, layers, note, writes_unicode
from outsize.sizes import format_size
from outsize.store.trace import Trace

if TYPE_CHECKING:
    from outsize.engine.engine import Stats

SCHEMA = 1
Row = Mapping[str, Any]


@dataclass(slots=True)
class Effort:
    """What it took so far."""

    sweeps: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    predicted_seconds: float = 0.0
    tokens: int = 0

    def add(self, stats: Stats, tokens: int, predicted_s: float, seconds: float) -> None:
        """Counts one dataset: what its model says, tokens, and predicted and measured seconds."""
        self.sweeps += stats.sweeps
        self.disk_bytes += stats.bytes_read
        self.tokens += tokens
        self.predicted_seconds += predicted_s
        self.seconds += seconds


@dataclass(slots=True)
class Summary(Effort):
    """The last line on stderr, or the object of ``--json``. ``rows``: computed now, errors included."""

    rows: int = 0
    errors: int = 0
    rows_before: int = 0


class Line(Protocol):
    """One thing to compute a row for.

    ``key`` joins it to its row, which begins with ``identity``. ``content``: all that the row depends on, as JSON has
    it. ``error``: why it cannot be computed, or nothing.
    """

    @property
    def key(self) -> str: ...
    @property
    def identity(self) -> Row: ...
    @property
    def content(self) -> Any: ...
    @property
    def error(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What makes one command different from another.

    ``settings``: all that rows depend on beside model and lines, as JSON has it. ``key_of``: the key of the line that a
    row belongs to. ``request``: what to compute for a line, or a text that says why it cannot be. ``row``: what the row
    of a line has after its identity, from the result.
    """

    name: str
    settings: Row
    key_of: Callable[[Row], str]
    request: Callable[[Any, Encoder], ScoreRequest | GenerateRequest | str]
    row: Callable[[Any, Any], Row]


@dataclass(frozen=True, slots=True)
class DatasetRunner:
    """Opens a model for each dataset anew, with the room that makes it fastest, and closes it after it.

    ``verbose``: says on stderr where the layers lie and what is predicted of ``noun``, its requests. ``others``: bytes
    of this process that no plan counts and that a budget for main memory is for too. ``trace``: gets what is done when.
    """

    folder: ModelFolder
    options: LoadOptions
    verbose: bool = False
    noun: str = "requests"
    others: Callable[[], int] = lambda: 0
    trace: Trace | None = None

    def results(self, requests: Sequence[Any], effort: Effort, tokenizer: Any) -> Iterator[Any]:
        """A ScoreResult or GenerateResult of each request, as they are ready. ``effort`` grows by what they took.

        Raises DoesNotFit, DamagedModel and the like.
        """
        if not requests:
            return
        began = time.monotonic()
        options, budget, others = self.options, self.options.ram_bytes, 0
        if budget is not None:
            others = self.others()
            options = replace(options, ram=max(budget - others, 1))
        opening = prepare_dataset(self.folder, dataset_of(requests), options)
        _check_fits(opening, others)
        model: Any = open_model(opening, trace=self.trace)
        bar = None
        try:
            predicted = model.outsize.predict(requests)
            if self.verbose:
                note(layers(opening.spec, opening.plan, unicode=writes_unicode(sys.stderr)))
                sweeps = f"{predicted.sweeps} sweeps, {predicted.seconds:.3g} s"
                note(f"{len(requests)} {self.noun} in {predicted.micro_batches} micro-batches: predicted {sweeps}")
            bar = DatasetBar(len(requests), predicted.seconds)
            now = DatasetProgress(0, len(requests), 0, 0, 0)

            def tell(progress: DatasetProgress) -> None:
                nonlocal now
                now = progress
                bar.to(now)

            if isinstance(requests[0], GenerateRequest):
                results = model.outsize.generate(requests, tokenizer=tokenizer, progress=tell)
            else:
                results = model.outsize.score(requests, progress=tell)
            with closing(results):
                yield from results
            seconds = time.monotonic() - began
            effort.add(model.outsize.stats, now.tokens, predicted.seconds, seconds)
            took = {"dataset": (predicted.seconds, seconds)}
            remember(history_path(), identity(), opening.spec.id, opening.plan.weights, took)
        finally:
            if bar is not None:
                bar.close()
            model.outsize.close()

    def complete(
        self, job: Job, lines: Sequence[Line], see: Callable[[Row], None], out: Path | None, *, retry_errors: bool
    ) -> Summary:
        """Computes the rows that ``out`` does not hold yet. ``see`` gets every row: those of before, then the new ones.

        Raises UsageError where the file holds rows of something else.
        """
        with nullcontext() if out is None else self._journal(job, lines, out, retry_errors) as journal:
            before = () if journal is None else journal.rows
            done = _done(before, job, lines)
            for row in before:
                see(row)
            summary = Summary(rows_before=len(done))

            def tell(line: Line, row: Row) -> None:
                whole = {**line.identity, **row}
                if journal is not None:
                    journal.append(whole)
                see(whole)
                summary.rows += 1
                summary.errors += "error" in row

            self._compute(job, [line for line in lines if line.key not in done], tell, summary)
        return summary

    def _journal(self, job: Job, lines: Sequence[Line], out: Path, retry_errors: bool) -> Journal:
        assert self.folder.path is not None  # folder_in has seen to it
        header = {
            "schema": SCHEMA,
            "command": job.name,
            "model": fingerprint(self.folder),
            "tokenizer": tokenizer_fingerprint(self.folder.path),
            "weights": self.options.format,
            "settings": job.settings,
            "rows": len(lines),
            "data": digest(line.content for line in lines),
        }
        return Journal(out, header, (lambda row: "error" not in row) if retry_errors else None)

    def _compute(self, job: Job, missing: Sequence[Line], tell: Callable[[Line, Row], None], summary: Summary) -> None:
        for line in missing:
            if line.error:
                tell(line, {"error": line.error})
        sound = {line.key: line for line in missing if not line.error}
        if not sound:
            return
        from outsize.engine.sequence import refusal
        from outsize.models.tracing.pretrained import load_tokenizer

        assert self.folder.path is not None
        tokenizer = load_tokenizer(self.folder.path)
        spec = folder_spec(self.folder)
        config = Namespace(**self.folder.config)
        encoder = Encoder(tokenizer, config, encoder_decoder=spec.encoder_decoder, spec=spec)
        requests = []
        for line in sound.values():
            request = job.request(line, encoder)
            error = request if isinstance(request, str) else refusal(request, spec)
            if error:
                tell(line, {"error": error})
            elif not isinstance(request, str):
                requests.append(request)
        for result in self.results(requests, summary, tokenizer):
            line = sound[result.id]
            tell(line, {"error": result.error} if result.error else job.row(line, result))


def _done(rows: Sequence[Row], job: Job, lines: Sequence[Line]) -> set[str]:
    """Keys of lines that have a row. Raises UsageError for rows of no line, and for two of one."""
    known = {line.key for line in lines}
    done: set[str] = set()
    for row in rows:
        key = job.key_of(row)
        if key not in known or key in done:
            what = "twice" if key in done else "that is not in the data"
            raise UsageError(f"the results hold {row['id']!r} {what}", remedy="delete that line, or another --out")
        done.add(key)
    return done


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
