"""The edge of the command line: standard streams that are closed or full, and errors that nobody translated before."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress

from outsize.errors import DoesNotFit, OutsizeError, UsageError, said
from outsize.files import is_disk_full
from outsize.models.files.tokenizer_limits import PANIC

DEBUG = "OUTSIZE_DEBUG"
INTERRUPTED = 130
READER_LEFT = 141  # as a shell tells of a process that SIGPIPE ended
ASK_FOR_TRACE = f"{DEBUG}=1 for the traceback, which belongs into a report of this fault"
REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EROFS: "a folder on a disk that can be written",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EIO: "check that disk: the system log (dmesg) says more",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "close other programs: the system has no more files to open",
    errno.ENAMETOOLONG: "a shorter name",
    errno.ENOTDIR: "check the name: a part of it is a file, and no folder",
    errno.EISDIR: "check the name: it is a folder",
    errno.ELOOP: "mend the links: they lead in a circle",
    errno.ENOENT: "check the name, and that nothing else removes files there",
    errno.ESTALE: "mount that network disk again",
    errno.ETXTBSY: "wait until the other program has ended",
}


def open_streams() -> None:
    """Makes standard streams that can be used: closed ones lead nowhere, and no character breaks an encoding.

    Raises OutsizeError for a standard output that is closed, because then no answer could be given.
    """
    closed = sys.stdout is None
    for descriptor in range(3):  # else the next file that is opened becomes a standard stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  for the rest of the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if closed:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise OutsizeError("standard output is closed", remedy="lead it to a file, a pipe or /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop_empty_variables(prefixes: tuple[str, ...] = ("OUTSIZE_", "HF_")) -> None:
    """An empty environment variable counts as one that is not set."""
    for name in [name for name, value in os.environ.items() if not value and name.startswith(prefixes)]:
        del os.environ[name]


def tell(error: BaseException) -> int:
    """One line on stderr about what ended a command; the exit code. The traceback too where OUTSIZE_DEBUG is set."""
    if os.environ.get(DEBUG):
        _say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        _say("outsize: interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and not error.filename:
        return READER_LEFT  # the reader has what it wanted
    ours = translate(error)
    _say(f"outsize: {ours}")
    return ours.exit_code


def flush(code: int) -> int:
    """The exit code once all is written: that of a failure where standard output takes no more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or tell(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # Python would flush once more at its end, and complain
            _lead_nowhere(stream)
    return code


def translate(error: BaseException) -> OutsizeError:
    """An error of this package for any other: what the system says of which file, and what to do."""
    match error:
        case OutsizeError():
            return error
        case UnicodeError():
            return OutsizeError(f"a text cannot be encoded or decoded: {said(error)}", remedy="UTF-8 everywhere")
        case OSError():
            return _of_system(error)
        case MemoryError():
            return DoesNotFit("memory is full", remedy="--ram SIZE with less, a smaller --batch or --context")
        case RecursionError():
            return OutsizeError("something is nested too deeply", remedy=ASK_FOR_TRACE)
        case _ if type(error).__name__ == PANIC:
            return OutsizeError(f"a library broke: {said(error)}", remedy=ASK_FOR_TRACE)
        case _ if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU; torch may not be loaded
            return DoesNotFit(f"GPU memory is full: {said(error)}", remedy="--gpu-memory SIZE with less")
    return OutsizeError(f"unforeseen: {type(error).__name__}: {said(error)}", remedy=ASK_FOR_TRACE)


def _of_system(error: OSError) -> OutsizeError:
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = error.strerror or said(error)
    remedy = REMEDIES.get(error.errno or 0, ASK_FOR_TRACE)
    kind = UsageError if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else OutsizeError
    where = " and ".join(files) or ("output" if is_disk_full(error) else "a file or stream")
    return kind(f"{where}: {what}", remedy=remedy)


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody can be told
        _lead_nowhere(sys.stderr)


def _lead_nowhere(stream: object) -> None:
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]
