"""What ``outsize score`` and ``outsize batch`` share: rows in, what is missing computed, rows out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from outsize.errors import UsageError
from outsize.facts.folder import ModelFolder
from outsize.facts.surveys import folder_spec
from outsize.interfaces import dataset_options, layer_map, progress
from outsize.interfaces.dataset_bar import DatasetBar
from outsize.planning.plan import Weights
from outsize.run.api import folder_in
from outsize.run.dataset import DatasetProgress, GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from outsize.run.dataset_opening import dataset_of, prepare_dataset
from outsize.run.encoding import Encoder
from outsize.run.fingerprint import fingerprint, tokenizer_fingerprint
from outsize.run.generate import load_tokenizer
from outsize.run.journal import Journal, line_of
from outsize.run.load import Opening, check_fits, open_model
from outsize.run.records import STANDARD_INPUT, Record, digest, line_key
from outsize.run.requests import parse_weights

SCHEMA = 1
Row = Mapping[str, Any]
Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]
Results = Generator[ScoreResult, None, None] | Generator[GenerateResult, None, None]


class Asking(Protocol):
    """What makes one command different from the other."""

    @property
    def name(self) -> str:
        """The command's."""

    @property
    def wanted(self) -> Sequence[str]:
        """Fields that every line must have."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All else that results depend on, as JSON has it."""

    def request(self, record: Record, encoder: Encoder) -> Any:
        """What to compute for a line, or a text that says why it cannot be."""

    def compute(self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]) -> Results:
        """The results, as they are ready."""

    def row(self, result: Any) -> Row:
        """What a line of the results has beside its id."""


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


def run_dataset(args: argparse.Namespace, asking: Asking) -> int:
    """Reads DATA, computes what has no result yet, and says what it took."""
    records = dataset_options.records(args, asking.wanted)
    weights = parse_weights(args.weights or "native")
    quiet = args.json
    folder = folder_in(
        args.model,
        weights,
        args.revision,
        None if quiet else progress.Bytes("downloading").to,
        (lambda done, total: None) if quiet else progress.Bytes("converting").to,
    )
    header = {
        "schema": SCHEMA,
        "command": asking.name,
        "model": fingerprint(folder),
        "tokenizer": tokenizer_fingerprint(_here(folder)),
        "weights": weights,
        "settings": asking.settings,
        "rows": len(records),
        "data": digest(records),
    }
    with _output(args, header) as (before, write):
        done = _done(before, records)
        missing = [record for record in records if record.key not in done]
        summary = _compute(args, asking, folder, missing, write)
    summary.rows_before = len(done)
    if quiet:
        print(json.dumps({"schema": SCHEMA, **asdict(summary)}))
    else:
        print(json.dumps(asdict(summary)), file=sys.stderr)
    return 0


@contextmanager
def _output(args: argparse.Namespace, header: Row) -> Iterator[tuple[Sequence[Row], Callable[[Row], None]]]:
    """The results that are there, and where further ones go."""
    if args.out is None or str(args.out) == STANDARD_INPUT:
        yield (), _to_stdout
        return
    keep = (lambda row: "error" not in row) if args.retry_errors else None
    with Journal(args.out, header, keep) as journal:
        yield journal.rows, journal.append


def _to_stdout(row: Row) -> None:
    sys.stdout.buffer.write(line_of(row))
    sys.stdout.flush()


def _done(rows: Sequence[Row], records: Sequence[Record]) -> set[str]:
    """Keys of lines that have a result. Raises UsageError for results of no line, and for two of one."""
    known = {record.key for record in records}
    done: set[str] = set()
    for row in rows:
        key = line_key(row["line"]) if "line" in row else json.dumps(row["id"])
        if key not in known or key in done:
            what = "twice" if key in done else "that is not in the data"
            raise UsageError(f"the results hold {row['id']!r} {what}", remedy="delete that line, or another --out")
        done.add(key)
    return done


def _compute(
    args: argparse.Namespace,
    asking: Asking,
    folder: ModelFolder,
    missing: Sequence[Record],
    write: Callable[[Row], None],
) -> Summary:
    """Computes lines, and writes what comes of each."""
    summary = Summary()

    def tell(record: Record, row: Row) -> None:
        line = {"line": record.line} if record.error else {}
        write({"id": record.id, **line, **row})
        summary.rows += 1
        summary.errors += "error" in row

    for record in missing:
        if record.error:
            tell(record, {"error": record.error})
    sound = {record.key: record for record in missing if not record.error}
    if not sound:
        return summary
    tokenizer = load_tokenizer(_here(folder))
    spec = folder_spec(folder)
    encoder = Encoder(tokenizer, _config(folder), encoder_decoder=spec.encoder_decoder)
    requests = []
    for record in sound.values():
        request = asking.request(record, encoder)
        if isinstance(request, str):
            tell(record, {"error": request})
        else:
            requests.append(request)
    if not requests:
        return summary
    weights: Weights = parse_weights(args.weights or "native")
    opening = prepare_dataset(folder, weights, dataset_of(requests), dataset_options.limits(args))
    check_fits(opening.spec, opening.plan)
    for result in _results(args, asking, opening, requests, encoder, summary):
        tell(sound[result.id], {"error": result.error} if result.error else asking.row(result))
    return summary


def _results(
    args: argparse.Namespace, asking: Asking, opening: Opening, requests: Any, encoder: Encoder, summary: Summary
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
