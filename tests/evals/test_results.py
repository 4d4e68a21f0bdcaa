from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from outsize.errors import OutsizeError, UsageError
from outsize.evals import results
from outsize.evals.results import Journal

HEADER = {"model": "a", "data": "b"}


def write(path: Path, *ids: int) -> None:
    with Journal(path, HEADER) as out:
        for one in ids:
            out.append({"id": one, "text": "x" * 20})


def ids(path: Path) -> list[int]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_rows_are_there_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Journal(path, HEADER) as out:
        assert out.rows == []
        out.append({"id": 1})
        assert ids(path) == [1]
    assert json.loads((tmp_path / "out.outsize.json").read_text()) == HEADER
    with Journal(path, HEADER) as out:
        assert out.rows == [{"id": 1}]
        out.append({"id": 2})
    out.close()
    assert ids(path) == [1, 2]


def test_a_torn_end_is_taken_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, 1, 2, 3)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = [line for n, line in enumerate(lines) if len(b"".join(lines[: n + 1])) <= size]
        with Journal(path, HEADER) as out:
            assert len(out.rows) == len(complete)
        assert path.read_bytes() == b"".join(complete)


def test_zeros_where_power_was_lost_are_a_torn_end_too(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, 1)
    with path.open("ab") as file:
        file.write(b"\0" * 10 + b"\n" + b"\0" * 7)
    write(path, 2)
    assert ids(path) == [1, 2]


def test_a_broken_line_before_results_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, 1, 2)
    path.write_text("nonsense\n" + path.read_text())
    before = path.read_bytes()
    with pytest.raises(UsageError, match="line 1"):
        Journal(path, HEADER)
    assert path.read_bytes() == before


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, 1)
    with pytest.raises(UsageError, match=r"model changed.*need model \"a\", have model \"c\".*another --out"):
        Journal(path, {**HEADER, "model": "c"})
    with pytest.raises(UsageError, match="seed changed"):
        Journal(path, {**HEADER, "seed": 1})
    for damaged in ("{", "7", "[1]"):
        (tmp_path / "out.outsize.json").write_text(damaged)
        with pytest.raises(UsageError, match="not JSON"):
            Journal(path, HEADER)
    (tmp_path / "out.outsize.json").unlink()
    with pytest.raises(UsageError, match=r"no out\.outsize\.json"):
        Journal(path, HEADER)
    assert ids(path) == [1]


def test_a_file_without_results_may_become_those_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path)
    Journal(path, {"model": "c"}).close()
    assert json.loads((tmp_path / "out.outsize.json").read_text()) == {"model": "c"}


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Journal(path, HEADER), pytest.raises(UsageError, match="another process"):
        Journal(path, HEADER)
    write(path, 1)


def test_rows_that_are_not_kept_are_gone_and_the_lock_is_not(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write(path, 1, 2, 3)
    with Journal(path, HEADER, lambda row: row["id"] != 2) as out:
        assert [row["id"] for row in out.rows] == [1, 3]
        with pytest.raises(UsageError, match="another process"):
            Journal(path, HEADER)
        out.append({"id": 2})
    assert ids(path) == [1, 3, 2]
    assert sorted(os.listdir(tmp_path)) == ["out", "out.outsize.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(tmp_path, HEADER)
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "out", HEADER)


def test_what_is_written_is_synced_within_a_second_though_nothing_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(results, "SYNC_EVERY_S", 0.001)
    with Journal(tmp_path / "out", HEADER) as out:
        out.append({"id": 1})
        for _ in range(1000):
            if synced:
                break
            time.sleep(0.005)
        assert synced


def test_a_drive_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    out = Journal(tmp_path / "out", HEADER)
    out.append({"id": 1})
    with pytest.raises(OutsizeError, match="Input/output"):
        out.close()
    monkeypatch.setattr(results, "SYNC_EVERY_S", 0.001)
    out = Journal(tmp_path / "out", HEADER)
    out.append({"id": 2})
    for _ in range(1000):
        if out._failed is None:
            time.sleep(0.005)
    with pytest.raises(OutsizeError, match="Input/output"):  # what comes next is not taken for written
        out.append({"id": 3})
    with pytest.raises(OutsizeError, match="Input/output"):
        out.close()
    assert ids(tmp_path / "out") == [1, 2]


def test_halves_of_characters_are_escaped(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", HEADER) as out:
        out.append({"id": "\ud800", "text": "ä"})
        out.append({"id": 2, "text": "ä"})
    assert (tmp_path / "out").read_bytes() == b'{"id": "\\ud800", "text": "\\u00e4"}\n{"id": 2, "text": "\xc3\xa4"}\n'


def test_a_full_disk_is_one_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    # The limit on a file's size stands in for the disk: a write past it is cut short, the next one fails.
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from outsize.errors import OutsizeError\n"
        "from outsize.evals.results import Journal\n"
        "out = Journal(Path(sys.argv[1]), {'model': 'a', 'data': 'b'})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "try:\n"
        "    for one in range(9):\n"
        "        out.append({'id': one, 'text': 'x' * 20})\n"
        "except OutsizeError as error:\n"
        "    print(error)\n"
        "out.close()\n"
    )
    path = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert ids(path) == [0, 1]
    write(path, 2)
    assert ids(path) == [0, 1, 2]


def test_a_full_disk_says_so() -> None:
    error = results._failure(Path("out"), OSError(28, "No space left on device"))
    assert "the disk is full" in str(error)
    assert "run again" in str(error)
