"""kill -9 at random moments of a dataset: afterwards every line has one result, none is lost, none is there twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import arguments, batch_lines, read_lines, score_lines, write_lines

from outsize.cli.main import main
from outsize.evals import results

pytestmark = pytest.mark.xdist_group("kills")  # one process: one server that has imported all

# A server that has imported all that takes long forks a process for each run: they begin in a moment.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "transformers.models.auto", "transformers.models.llama.modeling_llama"])
ROWS = 96
MORE = {"score": [], "batch": ["--max-new-tokens", "12"]}
LINES: Mapping[str, Callable[[int], list[Any]]] = {"score": score_lines, "batch": batch_lines}


def compute(environment: dict[str, str], argv: list[str], torn_row: int) -> None:
    os.environ.update(environment)
    if torn_row:
        die_while_writing(torn_row)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = main(argv)
    sys.exit(code)


def die_while_writing(number: int) -> None:
    """As kill -9 half-way through that row, a moment which a signal from outside seldom meets."""
    write, left = results._write, number

    def torn(file: int, line: bytes) -> None:
        nonlocal left
        left -= 1
        write(file, line if left else line[: len(line) // 2])
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    results._write = torn


def begin(argv: list[str], torn_row: int = 0) -> Any:
    environment = {name: os.environ[name] for name in ("OUTSIZE_CACHE", "HF_HOME")}
    process = SERVER.Process(target=compute, args=(environment, argv, torn_row))
    process.start()
    return process


def whole_lines(out: Path) -> list[str]:
    return out.read_text().split("\n")[:-1] if out.exists() else []


def rows_of(lines: list[str]) -> dict[str, Any]:
    return {row["id"]: row.get("text", row.get("best")) for row in map(json.loads, lines)}


def timed(argv: list[str], out: Path) -> tuple[float, float]:
    """Seconds to the first row, and to the end."""
    began = time.monotonic()
    process = begin(argv)
    while not whole_lines(out):
        assert process.is_alive()
        time.sleep(0.002)
    first = time.monotonic() - began
    process.join()
    assert process.exitcode == 0
    return first, time.monotonic() - began


def kill_at_random(process: Any, out: Path, moments: random.Random, first: float, whole: float) -> None:
    """After a random time, or, every other time, as soon as a random number of further rows is there."""
    if moments.random() < 0.5:
        time.sleep(moments.uniform(0.5 * first, whole))
    else:
        rows = len(whole_lines(out)) + moments.randrange(1, ROWS // 3)
        while process.is_alive() and len(whole_lines(out)) < rows:
            time.sleep(0.0005)
    process.kill()
    process.join()


def killed_often(command: str, folder: Path, kills: int, seed: int) -> tuple[int, int, list[int]]:
    """Rows missing and doubled in the end, and how many there were after each kill."""
    moments = random.Random(seed)
    lines = LINES[command](ROWS)
    data, out, reference = write_lines(folder / "data.jsonl", lines), folder / "out.jsonl", folder / "reference.jsonl"
    first, whole = timed(arguments(command, data, reference, *MORE[command]), reference)
    argv = arguments(command, data, out, *MORE[command])
    counts = []
    for _ in range(kills):
        before = whole_lines(out)
        if len(before) == ROWS:  # it was through: begin again
            out.unlink()
            before = []
        kill_at_random(begin(argv), out, moments, first, whole)
        after = whole_lines(out)
        assert after[: len(before)] == before
        counts.append(len(after))
    missing, doubled = lost_and_doubled(argv, lines, reference)
    return missing, doubled, counts


def lost_and_doubled(argv: list[str], lines: list[Any], reference: Path) -> tuple[int, int]:
    """Goes on to the end: rows missing and doubled then. What they say is what a run says that nothing disturbs."""
    process, out = begin(argv), Path(argv[argv.index("--out") + 1])
    process.join()
    assert process.exitcode == 0
    rows = read_lines(out)
    assert not any("error" in row for row in rows)
    same, made = rows_of(whole_lines(reference)), rows_of(whole_lines(out))
    assert sum(made[name] != same[name] for name in made) <= len(lines) // 20  # other companions round differently
    found = Counter(row["id"] for row in rows)
    missing = [line["id"] for line in lines if line["id"] not in found]
    return len(missing), sum(count - 1 for count in found.values())


@pytest.mark.parametrize("command", ["score", "batch"])
def test_nothing_is_lost_or_doubled(command: str, tmp_path: Path) -> None:
    lines = LINES[command](40)
    data, out, reference = write_lines(tmp_path / "d.jsonl", lines), tmp_path / "out.jsonl", tmp_path / "reference"
    assert main(arguments(command, data, reference, *MORE[command])) == 0
    argv = arguments(command, data, out, *MORE[command])
    for torn_row, whole in ((7, 6), (20, 25)):
        process = begin(argv, torn_row)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(whole_lines(out)) == whole
        assert not out.read_bytes().endswith(b"\n")
    assert lost_and_doubled(argv, lines, reference) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "batch"])
def test_nothing_is_lost_or_doubled_at_twenty_moments(command: str, tmp_path: Path) -> None:
    missing, doubled, counts = killed_often(command, tmp_path, kills=20, seed=2)
    sys.stdout.write(f"{command}: {missing} missing, {doubled} doubled; rows after each kill: {counts}\n")
    assert (missing, doubled) == (0, 0)
