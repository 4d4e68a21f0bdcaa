"""What a dataset asks, line by line: from a JSONL file, standard input or a dataset of the Hugging Face hub.

A line that cannot be understood is an error of its own; the lines beside it go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from outsize.errors import OutsizeError, UsageError

STANDARD_INPUT = "-"
Key = str  # an id as JSON, so that 7 and "7" are two; or "line 7", where there is none to be believed


@dataclass(frozen=True, slots=True)
class Record:
    """One line. ``id``: its own, or the line's number, from 1. ``fields``: the rest. Or what is wrong with it.

    ``raw``: what stands there, as far as nothing else says it.
    """

    line: int
    id: str | int
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    raw: str = ""

    @property
    def key(self) -> Key:
        return _line_key(self.line) if self.error else json.dumps(self.id)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"id": self.id, "line": self.line} if self.error else {"id": self.id}

    @property
    def content(self) -> Any:
        return [self.key, self.fields, self.error and self.raw]


def key_of(row: Mapping[str, Any]) -> Key:
    return _line_key(row["line"]) if "line" in row else json.dumps(row["id"])


def _line_key(line: int) -> Key:
    return f"line {line}"


def read_records(
    data: str,
    *,
    wanted: Sequence[str] | None = None,
    either: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    split: str = "test",
) -> list[Record]:
    """All lines of a file, of standard input (``-``) or of a dataset of the hub or in a folder; empty ones are none.

    ``wanted``: the fields that each must have, and then has alone, with one of ``either``; None leaves all lines as
    they are. ``columns``: other names that they have there. ``config`` and ``split`` are a hub dataset's. Raises
    UsageError for data that cannot be read.
    """
    path = Path(data).expanduser()
    if data == STANDARD_INPUT:
        found = list(_parse(sys.stdin.buffer))
    elif path.is_dir():
        found = list(_from_library(str(path.resolve()), config, split))
    elif path.exists() or data.endswith((".jsonl", ".json")) or data.startswith((".", "/", "~")):
        try:
            with path.open("rb") as file:
                found = list(_parse(file))
                _check_whole(data, file)
        except OSError as error:
            raise UsageError(f"{data} cannot be read: {error.strerror}") from error
    else:
        found = list(_from_library(data, config, split))
    return found if wanted is None else list(_checked(found, wanted, either, columns or {}))


def _check_whole(data: str, file: BinaryIO) -> None:
    """Raises UsageError where a file had less to read than it has bytes, which would be rows that nobody misses."""
    about = os.fstat(file.fileno())
    if stat.S_ISREG(about.st_mode) and file.tell() < about.st_size:
        have = f"{file.tell()} of {about.st_size} bytes"
        raise UsageError(f"{data} ended before its end", have=have, remedy="a copy of it on another disk")


def digest(contents: Iterable[Any]) -> str:
    """A checksum of what all lines say: the same for the same lines, in any order."""
    lines = sorted(json.dumps(content, sort_keys=True) for content in contents)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _parse(lines: BinaryIO) -> Iterator[Record]:
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            yield _record(number, raw)


def _record(number: int, raw: bytes) -> Record:
    text = raw.decode("utf-8", errors="backslashreplace").strip()
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Record(number, number, error=f"line {number}: not JSON ({error})", raw=text)
    if not isinstance(value, dict):
        return Record(number, number, error=f"line {number}: not a JSON object", raw=text)
    identity = value.pop("id", None)
    if identity is None:
        identity = number
    elif isinstance(identity, bool) or not isinstance(identity, str | int):
        return Record(number, number, error=f"line {number}: an id must be a string or a whole number", raw=text)
    return Record(number, identity, value, raw=text)


def _checked(
    records: Iterable[Record], wanted: Sequence[str], either: Sequence[str], columns: Mapping[str, str]
) -> Iterator[Record]:
    """With the wanted fields only; ids that were there before and missing fields are errors."""
    lines: dict[Key, int] = {}
    for record in records:
        checked = record
        if not record.error:
            named = {
                name: record.fields[c] for name in (*wanted, *either) if (c := columns.get(name, name)) in record.fields
            }
            missing = [repr(columns.get(name, name)) for name in wanted if name not in named]
            if either and sum(name in named for name in either) != 1:
                missing.append(" or ".join(repr(columns.get(name, name)) for name in either) + ", one of them")
            first = lines.setdefault(record.key, record.line)
            if first != record.line:
                checked = replace(record, error=f"line {record.line}: the id {record.id!r} is that of line {first}")
            elif missing:
                checked = replace(record, error=f"line {record.line}: lacks {' and '.join(missing)}")
            else:
                checked = replace(record, fields=named, raw="")
        yield checked


def _from_library(name: str, config: str | None, split: str) -> Iterator[Record]:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{name}: there is no such file, and datasets of the hub or in a folder need the package datasets",
            remedy="pip install 'outsize[datasets]'",
        ) from None
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises all kinds, from many other libraries
        said = (str(error) or type(error).__name__).partition("\n")[0]
        raise OutsizeError(f"{name}: neither a file nor a dataset that can be had ({said})") from error
    for number, row in enumerate(rows, start=1):
        yield _record(number, json.dumps(row, default=str).encode())
