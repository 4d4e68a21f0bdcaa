"""Run a command in a fresh memory cgroup and say what it took: v1 and v2.

A memory cgroup charges the page cache as well as the process's own memory, so it is a fair limit for engines that rely
on the page cache and for those that do not. It needs root. Without it the command still runs, and the result says that
nothing was enforced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_SAMPLE_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """What a command printed and what it took. Bytes; None where no cgroup could say."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    enforced: bool
    limit_bytes: int
    peak_bytes: int | None  # page cache included, so it reaches the limit for any buffered reader
    peak_anonymous_bytes: int | None  # without page cache, sampled ten times a second
    oom_kills: int | None


class _Group:
    """One memory cgroup of our own, of either version."""

    def __init__(self, limit: int) -> None:
        self.version = 1 if (_V1 / "memory.limit_in_bytes").exists() else 2
        name = f"outsize-bench-{os.getpid()}-{time.monotonic_ns()}"
        if self.version == 2:
            with contextlib.suppress(OSError):  # already delegated, or not ours to delegate: the limit below will tell
                (_V2 / "cgroup.subtree_control").write_text("+memory")
        self.path = (_V1 if self.version == 1 else _V2) / name
        self.path.mkdir()
        try:
            self._limit(limit)
        except OSError:
            self.path.rmdir()
            raise

    def _limit(self, limit: int) -> None:
        if self.version == 1:
            (self.path / "memory.limit_in_bytes").write_text(str(limit))
            swap, ceiling = self.path / "memory.memsw.limit_in_bytes", limit
        else:
            (self.path / "memory.max").write_text(str(limit))
            swap, ceiling = self.path / "memory.swap.max", 0
        if swap.exists():  # absent where the kernel does not account swap
            swap.write_text(str(ceiling))

    def _table(self, name: str) -> dict[str, int]:
        return {
            key: int(value) for key, value in (line.split() for line in (self.path / name).read_text().splitlines())
        }

    def peak(self) -> int | None:
        path = self.path / ("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")
        return int(path.read_text()) if path.exists() else None  # memory.peak is younger than v2 itself

    def anonymous(self) -> int:
        return self._table("memory.stat")["total_rss" if self.version == 1 else "anon"]

    def oom_kills(self) -> int:
        return self._table("memory.oom_control" if self.version == 1 else "memory.events").get("oom_kill", 0)

    def remove(self) -> None:
        """Kill what is left inside and delete the group, its page cache first, so that no later group inherits it."""
        for pid in (self.path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self.version == 1:
            with contextlib.suppress(OSError):
                (self.path / "memory.force_empty").write_text("0")
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.path}: could not be removed")


def drop_caches() -> bool:
    """Empty the page cache (root only); says whether it could."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def _open_group(limit: int) -> _Group | None:
    try:
        return _Group(limit)
    except OSError:  # not root, a read-only mount, or no memory controller here
        return None


def run(command: list[str], limit: int, timeout: float, environment: dict[str, str] | None = None) -> Outcome:
    """Run a command under ``limit`` bytes, after emptying the page cache, and collect what it printed."""
    drop_caches()
    group = _open_group(limit)
    if group is not None:
        # The shell joins the group before it becomes the command, so that not a byte escapes the count.
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *command]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)
        sampler = _Sampler(group)
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        finally:
            if process.poll() is None:  # interrupted
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            seconds = time.monotonic() - began
            anonymous = sampler.stop()
            peak = group.peak() if group else None
            kills = group.oom_kills() if group else None
            if group is not None:
                group.remove()
        out.seek(0)
        err.seek(0)
        return Outcome(
            process.returncode,
            out.read(),
            err.read(),
            seconds,
            timed_out,
            group is not None,
            limit,
            peak,
            anonymous,
            kills,
        )


class _Sampler:
    """Keeps the largest anonymous memory seen in a group."""

    def __init__(self, group: _Group | None) -> None:
        self._group = group
        self._largest: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._group is not None and not self._done.wait(_SAMPLE_S):
            self._largest = max(self._largest or 0, self._group.anonymous())

    def stop(self) -> int | None:
        self._done.set()
        self._thread.join()
        return self._largest
