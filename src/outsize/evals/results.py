"""A file of results that grows line by line, and that a process may leave at any moment without losing one.

Every result is one line, written at once; what a process left torn at the end is taken off by the next one. Beside the
file lies a header, ``FILE.outsize.json``, that says of what these are the results.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from outsize.errors import OutsizeError, UsageError
from outsize.files import is_disk_full, sync_folder, write_whole

SYNC_EVERY_S = 1.0  # most seconds that a written line may wait for the drive
SUFFIX = ".outsize.json"


class Journal:
    """Opens or begins a file of results, for one process at a time.

    ``header``: facts that must be the same in every run that adds to the file, from a name to its value. Raises
    UsageError where another process has the file, where its header differs, and for a file that is something else.
    ``rows``: the results that are in it. ``keep``: of those that are there, which ones to keep; the others are dropped.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], keep: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> None:
        self.path = path
        self._header = path.with_name(path.name + SUFFIX)
        self._file = _locked(path)
        try:
            data = _read(self._file)
            self.rows, end = _rows(path, data)
            self._check(header, bool(data))
            write_whole(self._header, json.dumps(header, indent=1) + "\n")
            os.ftruncate(self._file, end)
            kept = self.rows if keep is None else [row for row in self.rows if keep(row)]
            if len(kept) < len(self.rows):
                self._rewrite(kept)
            self._end = os.lseek(self._file, 0, os.SEEK_END)
            os.fsync(self._file)
            sync_folder(path.parent)
        except OSError as error:
            os.close(self._file)
            raise _failure(path, error) from error
        except BaseException:
            os.close(self._file)
            raise
        self._unsynced = threading.Event()
        self._closing = threading.Event()
        self._failed: OSError | None = None
        self._syncing = threading.Thread(target=self._sync, name="journal", daemon=True)
        self._syncing.start()

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one result; the drive has it within a second. Raises OutsizeError for a full disk, and the like."""
        line = line_of(row)
        if self._failed is not None:
            raise _failure(self.path, self._failed)
        try:
            _write(self._file, line)
        except OSError as error:
            os.ftruncate(self._file, self._end)  # what came of it is no line
            raise _failure(self.path, error) from error
        self._end += len(line)
        self._unsynced.set()

    def close(self) -> None:
        """Syncs what is left, and lets other processes have the file. A second close does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._unsynced.set()
        self._syncing.join()
        os.close(self._file)
        if self._failed is not None:
            raise _failure(self.path, self._failed)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.close()
        except OutsizeError:
            if error is None:
                raise

    def _sync(self) -> None:
        """In a thread: what has been written for a second goes to the drive, also while the model computes."""
        while True:
            self._unsynced.wait()
            self._closing.wait(SYNC_EVERY_S)
            last = self._closing.is_set()
            self._unsynced.clear()
            try:
                os.fdatasync(self._file)
            except OSError as error:
                self._failed = error
            if last:
                return

    def _check(self, header: Mapping[str, Any], begun: bool) -> None:
        remedy = f"another --out, or delete {self.path} and {self._header}"
        if not begun:
            return
        try:
            before = dict(json.loads(self._header.read_text()))
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} has lines already, and no {self._header.name} says of what", remedy=remedy
            ) from None
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self._header} is not JSON: {error}", remedy=remedy) from error
        changed = [name for name in {**header, **before} if header.get(name) != before.get(name)]
        if changed and self.rows:
            raise UsageError(
                f"{self.path} holds results of something else: {', '.join(changed)} changed",
                need=_shown(changed, before),
                have=_shown(changed, header),
                remedy=remedy,
            )

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The file with these lines only. The old one stays until the new one is whole, and is never without a lock."""
        temporary = self.path.with_name(self.path.name + ".new")
        new = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for row in rows:
                _write(new, line_of(row))
            os.fsync(new)
            temporary.replace(self.path)
        except BaseException:
            os.close(new)
            temporary.unlink(missing_ok=True)
            raise
        old, self._file, self.rows = self._file, new, list(rows)
        os.close(old)


def line_of(row: Mapping[str, Any]) -> bytes:
    """One line of JSON; escaped where it holds halves of characters, which no encoding has."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


def _locked(path: Path) -> int:
    """The file, open and locked. Raises UsageError where another process has it, or where it cannot be opened."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _failure(path, error) from error
            raise UsageError(f"another process is writing to {path}", remedy="wait for it, or another --out") from None
        try:
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)  # with its lock, which would keep this process out, too
            raise
        os.close(file)  # another process has put a new file into its place meanwhile


def _read(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as reader:  # a duplicate that is left open would keep the lock
        reader.seek(0)
        return reader.read()


def _rows(path: Path, data: bytes) -> tuple[list[Mapping[str, Any]], int]:
    """The results in the file, and the byte where the last whole one ends.

    A machine that lost its power may leave zeros where lines should be, so several broken lines at the end are a torn
    end too. Raises UsageError for a broken line before a whole one.
    """
    rows: list[Mapping[str, Any]] = []
    at = end = 0
    broken = 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        at += len(line) + 1
        row = _row(line)
        if row is None:
            broken = broken or number
            continue
        if broken:
            raise UsageError(
                f"{path}: line {broken} is not a result, though results come after it", remedy=f"delete line {broken}"
            )
        rows.append(row)
        end = at
    return rows, end


def _row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "id" in row else None


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _shown(names: Iterable[str], values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(values.get(name))[:80]}" for name in names)


def _failure(path: Path, error: OSError) -> OutsizeError:
    full = is_disk_full(error)
    return OutsizeError(
        f"{path}: {'the disk is full' if full else error.strerror}",
        remedy="free some space and run again: what is written is kept" if full else "",
    )
