"""What ``outsize score``, ``batch`` and ``fewshot`` share: lines in, what is missing computed, rows out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from outsize.api import folder_in
from outsize.cli import arguments, dataset_arguments, layer_map, progress
from outsize.cli.dataset_bar import DatasetBar
from outsize.engine.loader import Opening, check_fits, open_model
from outsize.engine.request import DatasetProgress, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.errors import UsageError
from outsize.evals.dataset_model import dataset_of, prepare_dataset
from outsize.evals.fingerprint import fingerprint, tokenizer_fingerprint
from outsize.evals.records import Record, digest
from outsize.evals.requests import Encoder
from outsize.evals.results import Journal, line_of
from outsize.models.files.folder import ModelFolder
from outsize.models.survey_cache import folder_spec

SCHEMA = 1
Row = Mapping[str, Any]
Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]
Results = Generator[ScoreResult, None, None] | Generator[GenerateResult, None, None]


class Line(Protocol):
    """One thing to compute a row for."""

    @property
    def key(self) -> str:
        """What joins it to its row."""

    @property
    def identity(self) -> Row:
        """What its row begins with, and what its key can be told from."""

    @property
    def content(self) -> Any:
        """All that its row depends on, as JSON has it."""

    @property
    def error(self) -> str:
        """Why it cannot be computed, or nothing."""


Some = TypeVar("Some", bound=Line)
SomeIn = TypeVar("SomeIn", bound=Line, contravariant=True)


class Asking(Protocol[SomeIn]):
    """What makes one command different from the other."""

    @property
    def name(self) -> str:
        """The command's."""

    @property
    def settings(self) -> Row:
        """All that rows depend on beside model and lines, as JSON has it."""

    def key_of(self, row: Row) -> str:
        """The key of the line that a row belongs to."""

    def request(self, line: SomeIn, encoder: Encoder) -> Any:
        """What to compute for a line, or a text that says why it cannot be."""

    def compute(self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]) -> Results:
        """The results, as they are ready."""

    def row(self, line: SomeIn, result: Any) -> Row:
        """What the row of a line has behind its identity."""


@dataclass(slots=True)
class Summary:
    """What it took: the last line on stderr, or the object of ``--json``. ``rows``: computed now, errors included."""

    sweeps: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0
    predicted_seconds: float = 0.0
    rows: int = 0
    errors: int = 0
    rows_before: int = 0
    tokens: int = 0


def run_dataset(args: argparse.Namespace, asking: Asking[Record], wanted: Sequence[str]) -> int:
    """Reads DATA, whose lines must have the ``wanted`` fields, computes what has no row yet, and says what it took."""
    records = dataset_arguments.records(args, wanted)
    summary = complete(args, asking, records, _nowhere if dataset_arguments.to_file(args) else _to_stdout)
    if args.json:
        print(json.dumps({"schema": SCHEMA, **asdict(summary)}))
    else:
        print(json.dumps(asdict(summary)), file=sys.stderr)
    failed = summary.rows and summary.errors == summary.rows and not summary.rows_before
    return 1 if failed else 0  # nothing that was asked for was computed


def complete(
    args: argparse.Namespace, asking: Asking[Some], lines: Sequence[Some], see: Callable[[Row], None]
) -> Summary:
    """Computes the rows that ``--out`` does not hold yet. ``see`` gets every row: those of before, then the new ones.

    Raises UsageError where the file holds rows of something else.
    """
    folder = folder_in(
        args.model,
        arguments.options(args),
        None if args.json else progress.Bytes("downloading").to,
        (lambda done, total: None) if args.json else progress.Bytes("converting").to,
    )
    with _output(args, asking, folder, lines) as (before, append):
        done = _done(before, asking, lines)
        for row in before:
            see(row)

        def write(row: Row) -> None:
            append(row)
            see(row)

        summary = _compute(args, asking, folder, [line for line in lines if line.key not in done], write)
    summary.rows_before = len(done)
    return summary


@contextmanager
def _output(
    args: argparse.Namespace, asking: Asking[Some], folder: ModelFolder, lines: Sequence[Some]
) -> Iterator[tuple[Sequence[Row], Callable[[Row], None]]]:
    """The rows that are there, and where further ones go."""
    if not dataset_arguments.to_file(args):
        yield (), _nowhere
        return
    header = {
        "schema": SCHEMA,
        "command": asking.name,
        "model": fingerprint(folder),
        "tokenizer": tokenizer_fingerprint(_here(folder)),
        "weights": args.weights or "native",
        "settings": asking.settings,
        "rows": len(lines),
        "data": digest(line.content for line in lines),
    }
    keep = (lambda row: "error" not in row) if args.retry_errors else None
    with Journal(args.out, header, keep) as journal:
        yield journal.rows, journal.append


def _nowhere(row: Row) -> None:
    """What is kept elsewhere."""


def _to_stdout(row: Row) -> None:
    sys.stdout.buffer.write(line_of(row))
    sys.stdout.flush()


def _done(rows: Sequence[Row], asking: Asking[Some], lines: Sequence[Some]) -> set[str]:
    """Keys of lines that have a row. Raises UsageError for rows of no line, and for two of one."""
    known = {line.key for line in lines}
    done: set[str] = set()
    for row in rows:
        key = asking.key_of(row)
        if key not in known or key in done:
            what = "twice" if key in done else "that is not in the data"
            raise UsageError(f"the results hold {row['id']!r} {what}", remedy="delete that line, or another --out")
        done.add(key)
    return done


def _compute(
    args: argparse.Namespace,
    asking: Asking[Some],
    folder: ModelFolder,
    missing: Sequence[Some],
    write: Callable[[Row], None],
) -> Summary:
    """Computes lines, and writes what comes of each."""
    summary = Summary()

    def tell(line: Some, row: Row) -> None:
        write({**line.identity, **row})
        summary.rows += 1
        summary.errors += "error" in row

    for line in missing:
        if line.error:
            tell(line, {"error": line.error})
    sound = {line.key: line for line in missing if not line.error}
    if not sound:
        return summary
    from outsize.models.tracing.pretrained import load_tokenizer

    tokenizer = load_tokenizer(_here(folder))
    spec = folder_spec(folder)
    encoder = Encoder(tokenizer, _config(folder), encoder_decoder=spec.encoder_decoder)
    requests = []
    for line in sound.values():
        request = asking.request(line, encoder)
        if isinstance(request, str):
            tell(line, {"error": request})
        else:
            requests.append(request)
    if not requests:
        return summary
    opening = prepare_dataset(folder, dataset_of(requests), arguments.options(args))
    check_fits(opening.spec, opening.plan)
    for result in _results(args, asking, opening, requests, encoder, summary):
        line = sound[result.id]
        tell(line, {"error": result.error} if result.error else asking.row(line, result))
    return summary


def _results(
    args: argparse.Namespace, asking: Asking[Any], opening: Opening, requests: Any, encoder: Encoder, summary: Summary
) -> Iterator[Any]:
    """Loads the model, yields what it computes, and closes it; ``summary`` gets what it took."""
    began = time.monotonic()
    model: Any = open_model(opening)
    bar = None
    try:
        predicted = model.outsize.predict(requests)
        if not args.json:
            _say(opening, len(requests), predicted)
        bar = DatasetBar(len(requests), predicted.seconds)
        seen = [DatasetProgress(0, len(requests), 0, 0, 0)]

        def tell(now: DatasetProgress) -> None:
            seen[0] = now
            bar.to(now)

        with closing(asking.compute(model, requests, encoder, tell)) as results:
            yield from results
        stats = model.outsize.stats
        summary.sweeps, summary.disk_bytes, summary.tokens = stats.sweeps, stats.bytes_read, seen[0].tokens
        summary.seconds, summary.predicted_seconds = time.monotonic() - began, predicted.seconds
    finally:
        if bar is not None:
            bar.close()
        model.outsize.close()


def _say(opening: Opening, rows: int, predicted: Any) -> None:
    unicode = "utf" in (sys.stderr.encoding or "").lower()
    progress.note(layer_map.layers(opening.spec, opening.plan, unicode=unicode))
    progress.note(
        f"{rows} rows in {predicted.micro_batches} micro-batches: predicted {predicted.sweeps} sweeps, "
        f"{predicted.seconds:.3g} s"
    )


def _config(folder: ModelFolder) -> Any:
    return argparse.Namespace(**folder.config)


def _here(folder: ModelFolder) -> Path:
    assert folder.path is not None  # folder_in has seen to it
    return folder.path
