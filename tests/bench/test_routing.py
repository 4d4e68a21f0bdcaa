"""The simulator of expert caches, and what the planner predicts held against it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outsize.planner.routing import hit_rate, touched, touched_measured

BENCH = Path(__file__).parents[2] / "bench"
LAYERS, EXPERTS, USED = 4, 64, 4


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("routing")


def made(bench: Any, habit: str, tokens: int = 800) -> Any:
    return bench.made(bench.Shape("small", EXPERTS, USED, LAYERS, 10), bench.HABITS[habit], tokens, 3)


@pytest.mark.parametrize("habit", ["uniform", "skewed"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_the_predicted_hit_rate_is_the_simulated_one(bench: Any, habit: str, share: float) -> None:
    ids = made(bench, habit).ids
    counts = np.bincount(np.array(ids).ravel(), minlength=LAYERS * EXPERTS).tolist()
    size = int(share * LAYERS * EXPERTS)
    cache = bench.TokenLRU(size, EXPERTS, LAYERS)
    simulated, _ = bench.decode(ids, cache)
    assert hit_rate(counts, LAYERS * USED, size / LAYERS / EXPERTS) == pytest.approx(simulated, abs=0.02)


def test_tokens_that_drift_hit_more_than_counts_say(bench: Any) -> None:
    ids = made(bench, "drifting").ids
    counts = np.bincount(np.array(ids).ravel(), minlength=LAYERS * EXPERTS).tolist()
    simulated, _ = bench.decode(ids, bench.TokenLRU(LAYERS * EXPERTS // 4, EXPERTS, LAYERS))
    assert simulated > hit_rate(counts, LAYERS * USED, 0.25) + 0.05


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_predicted_touches_are_the_simulated_ones(bench: Any, tokens: int) -> None:
    for habit in ("uniform", "skewed"):
        used = made(bench, habit).used[:, 0]
        groups = used.reshape(-1, tokens * USED)
        simulated = float(np.mean([len(set(group)) / EXPERTS for group in groups.tolist()]))
        counts = np.bincount(used.ravel(), minlength=EXPERTS).tolist()
        assert touched_measured(counts, USED, tokens) == pytest.approx(simulated, abs=0.02)
        if habit == "uniform":
            assert touched(EXPERTS, USED, tokens) == pytest.approx(simulated, abs=0.02)


def test_no_policy_beats_the_bound_and_by_token_is_not_below_lru(bench: Any) -> None:
    for habit in bench.HABITS:
        found = bench.compare(made(bench, habit, 300), made(bench, habit, 300), LAYERS)
        bound = [row["hit_rate"] for row in found["Belady (bound)"]]
        for name, rows in found.items():
            if not name.startswith("look-ahead"):  # which reads what it was not asked for
                assert all(row["hit_rate"] <= most for row, most in zip(rows, bound, strict=True)), name
        plain, chosen = ([row["hit_rate"] for row in found[name]] for name in ("LRU", bench.CHOSEN))
        assert all(mine >= theirs - 0.01 for mine, theirs in zip(chosen, plain, strict=True))
        assert chosen[0] > plain[0] + 0.03  # less room than a token uses: LRU finds nothing


def test_what_prompts_read_goes_first(bench: Any) -> None:
    cache = bench.TokenLRU(6, experts=8, layers=2, scans="first to go")
    for token in ([0, 1], [2, 3]):
        cache.use(token)
        cache.use([8 + one for one in token])
    assert cache.scan(range(8), [0]) == sum(one in cache.lists[0] for one in range(4))
    assert cache.held == 6
    kept = [set(own) for own in cache.lists]
    assert cache.scan(range(8, 16), [8]) == len(kept[1])
    assert [set(own) for own in cache.lists] == kept  # nothing was lost
    assert cache.reads == 8 + 8 - len(kept[0]) + 8 - len(kept[1])


def test_prompts_read_less_where_what_they_read_goes_first(bench: Any) -> None:
    trace = bench.with_prompts(made(bench, "drifting"), 100, 60)
    newest, first = (bench.prompts(trace, scans, 1, 0.5) for scans in ("newest", "first to go"))
    assert first["prompt_reads"] < newest["prompt_reads"] - 0.05
    assert first["hit_rate"] > newest["hit_rate"] - 0.03


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_recorded_trace(tmp_path: Path) -> None:
    lines: list[Any] = [{"experts": 8, "layers": 2, "per_token": 2, "expert_bytes": 5, "model": "tiny"}]
    for token in range(6):
        if token % 3 == 2:
            lines += [{"layer": layer, "experts": [[0, 1], [2, 3], [4, 5]]} for layer in range(2)]
        lines += [{"layer": layer, "experts": [token, 7]} for layer in range(2)]
    lines.append({"layer": 0, "experts": [1, 2]})  # cut short
    path = write(tmp_path / "trace.jsonl", lines)
    done = subprocess.run(
        [sys.executable, str(BENCH / "routing.py"), "--trace", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["results"]
    assert row["shape"] == {"name": "tiny", "experts": 8, "per_token": 2, "layers": 2, "expert_bytes": 5}
    assert {rows[-1]["cached"] for rows in row["policies"].values()} == {0.9}
    assert set(row["prompts"]) >= {"newest", "first to go"}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"experts": 8}],
        [{"experts": 8, "layers": 2, "per_token": 2}, {"layer": 1, "experts": [0, 1]}],
        [{"experts": 8, "layers": 1, "per_token": 2}, {"layer": 0, "experts": [0, 1, 2]}],
        [{"experts": 8, "layers": 1, "per_token": 2}],
        [{"experts": 8, "layers": 1, "per_token": 2}, {"layer": 0, "experts": [0, 8]}],
    ],
)
def test_files_that_are_no_trace(bench: Any, tmp_path: Path, lines: list[Any]) -> None:
    with pytest.raises(SystemExit, match=r"trace of routings|names an expert"):
        bench.recorded(write(tmp_path / "t.jsonl", lines))


def test_made_traces_are_what_others_measured(bench: Any) -> None:
    rows = bench.published()
    assert [abs(row["theirs"] - row["made"]) < 5 for row in rows[:6]] == [True] * 6
