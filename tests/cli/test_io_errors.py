"""An I/O error at the n-th call, whichever it is: one line or a right answer, never a traceback or another answer."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import DEMO, write_lines

from outsize.cli.main import main

POINTS = 10  # of each command
READING = ((io, "open"), (os, "open"), (os, "read"), (os, "preadv"), (os, "stat"), (os, "statvfs"), (os, "listdir"))
WRITING = ("write", "pwrite", "fsync", "ftruncate", "mkdir", "rename", "replace", "unlink")
CALLS = (*READING, *((os, name) for name in WRITING))
ROWS = [{"id": str(i), "context": f"the lamp {i} is", "choices": [" on", " off"]} for i in range(3)]
PROMPTS = [{"id": row["id"], "prompt": row["context"]} for row in ROWS]
COMMANDS = ("run", "score", "batch", "convert", "verify")


class Failing:
    """Counts the calls of ``CALLS`` on files under ``root``, and lets one of them fail."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.at, self.fired = str(root), 0, -1, False

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            if args and self._is_ours(args[0]):
                self.calls += 1
                if self.calls == self.at:
                    self.fired = True
                    raise OSError(errno.EIO, os.strerror(errno.EIO), args[0] if isinstance(args[0], str) else None)
            return call(*args, **kwargs)

        return counted

    def _is_ours(self, what: Any) -> bool:
        if isinstance(what, int):
            try:
                what = os.readlink(f"/proc/self/fd/{what}")
            except OSError:
                return False
        return isinstance(what, str | os.PathLike) and os.fspath(what).startswith(self.root)  # type: ignore[arg-type]


@contextmanager
def failing(root: Path, at: int) -> Iterator[Failing]:
    """Within it, call number ``at`` on a file under ``root`` fails; none where it is -1."""
    state = Failing(root)
    state.at = at
    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, state.wrapped(getattr(module, name)))
        yield state


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    shutil.copytree(DEMO, root / "model")
    write_lines(root / "rows.jsonl", ROWS)
    write_lines(root / "prompts.jsonl", PROMPTS)
    assert main(["convert", str(DEMO), "--weights", "int8", "--out", str(root / "int8")]) == 0
    return root


def arguments(command: str, root: Path) -> list[str]:
    model = str(root / "model")
    return {
        "run": ["run", model, "the lamp", "--max-new-tokens", "2", "--no-gpu", "--json"],
        "score": ["score", model, str(root / "rows.jsonl"), "--no-gpu", "--out", str(root / "out")],
        "batch": [
            "batch",
            model,
            str(root / "prompts.jsonl"),
            "--no-gpu",
            "--max-new-tokens",
            "2",
            "--out",
            str(root / "out"),
        ],
        "convert": ["convert", model, "--weights", "int4", "--out", str(root / "out")],
        "verify": ["verify", str(root / "int8")],
    }[command]


def answer(command: str, said: str, root: Path) -> Any:
    """What must be the same, nothing that was measured: of what was printed, or written, which goes."""
    match command:
        case "run":
            return json.loads(said)["text"]
        case "verify":
            return said.split(" in ")[0]
        case "convert":
            files = {path.name: sha256(path.read_bytes()).hexdigest() for path in (root / "out").glob("*")}
            shutil.rmtree(root / "out", ignore_errors=True)
            return files
    rows = [json.loads(line) for line in (root / "out").read_text().splitlines()]
    (root / "out").unlink()
    return sorted(
        (row["id"], row["text"] if command == "batch" else [round(p, 3) for p in row["logprobs"]]) for row in rows
    )


def remains(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What is there after an error: of a conversion all or nothing, of a dataset what one more run makes whole."""
    if command in ("score", "batch"):
        assert main(arguments(command, root)) == 0
        capsys.readouterr()
        return [row[0] for row in answer(command, "", root)]  # in bfloat16 rows alone are other last bits
    return answer(command, "", root) if command == "convert" else {}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_at_any_call(
    command: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # its handlers keep the stderr of the test that made them
    with failing(root, -1) as sound:
        assert main(arguments(command, root)) == 0
    want = answer(command, capsys.readouterr().out, root)
    points = random.Random(command).sample(range(1, sound.calls + 1), min(POINTS, sound.calls))
    reached = 0
    for at in points:
        with failing(root, at) as state:
            code = main(arguments(command, root))
        out, err = capsys.readouterr()
        reached += state.fired
        assert "Traceback" not in err, (at, err)
        if code:
            assert code in (1, 2, 3, 4), (at, err)
            assert sum(line.startswith("outsize: ") for line in err.splitlines()) == 1, (at, err)
            assert remains(command, root, capsys) in ({}, want, [row[0] for row in want]), at
        else:
            assert answer(command, out, root) == want, at
    assert reached
