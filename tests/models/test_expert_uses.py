from __future__ import annotations

import json
from pathlib import Path

import pytest

from outsize.models import expert_uses
from outsize.models.expert_uses import keep_routing, known_routing

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"OUTSIZE_CACHE": str(tmp_path / "new")}


def file_of(environ: dict[str, str]) -> Path:
    (path,) = (Path(environ["OUTSIZE_CACHE"]) / "specs").iterdir()
    return path


def test_uses_add_up_over_runs(environ: dict[str, str]) -> None:
    assert known_routing(KEY, environ) == {}
    keep_routing(KEY, {"layers.0.experts": [1, 2, 0], "layers.1.experts": [5, 0, 0]}, environ)
    keep_routing(KEY, {"layers.0.experts": [1, 0, 3], "layers.2.experts": [1, 1, 1], "layers.3.experts": []}, environ)
    assert known_routing(KEY, environ) == {
        "layers.0.experts": (2, 2, 3),
        "layers.1.experts": (5, 0, 0),
        "layers.2.experts": (1, 1, 1),
    }
    assert file_of(environ).name == f"{KEY}.uses.json"
    assert known_routing("another", environ) == {}


def test_a_run_that_used_none_leaves_no_file(environ: dict[str, str]) -> None:
    keep_routing(KEY, {}, environ)
    assert not Path(environ["OUTSIZE_CACHE"]).exists()


def test_a_layer_of_another_size_begins_anew(environ: dict[str, str]) -> None:
    keep_routing(KEY, {"a": [1, 2, 3]}, environ)
    keep_routing(KEY, {"a": [7, 7]}, environ)
    assert known_routing(KEY, environ) == {"a": (7, 7)}


def test_keys_that_are_no_file_names(environ: dict[str, str]) -> None:
    for key in ("org/model", "../../etc/passwd", "", "x" * 300):
        keep_routing(key, {"a": [len(key)]}, environ)
    assert known_routing("org/model", environ) == {"a": (9,)}
    folder = Path(environ["OUTSIZE_CACHE"]) / "specs"
    assert len(list(folder.iterdir())) == 4
    assert [path.name for path in Path(environ["OUTSIZE_CACHE"]).iterdir()] == ["specs"]


def test_older_uses_count_half(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_uses, "MOST_USES", 100)
    keep_routing(KEY, {"a": [80, 10], "b": [4, 4]}, environ)
    keep_routing(KEY, {"a": [0, 90]}, environ)
    assert known_routing(KEY, environ) == {"a": (40, 50), "b": (2, 2)}


def test_files_stay_small(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    keep_routing(KEY, {"a": [1] * 10}, environ)
    monkeypatch.setattr(expert_uses, "MOST_BYTES", 60)
    keep_routing(KEY, {"b": [1] * 100}, environ)
    assert known_routing(KEY, environ) == {"a": (1,) * 10}
    monkeypatch.setattr(expert_uses, "MOST_BYTES", 10)
    assert known_routing(KEY, environ) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"3",
        b"[" * 100_000,
        b'{"schema": 2, "uses": {"a": [1]}}',
        b'{"schema": 1}',
        b'{"schema": 1, "uses": [1]}',
        b'{"schema": 1, "uses": {"a": 3}}',
        b'{"schema": 1, "uses": {"a": "12"}}',
        b'{"schema": 1, "uses": {"a": []}}',
        b'{"schema": 1, "uses": {"a": [1, -1]}}',
        b'{"schema": 1, "uses": {"a": [1, true]}}',
        b'{"schema": 1, "uses": {"a": [1, NaN]}}',
    ],
)
def test_damaged_files_are_none(environ: dict[str, str], content: bytes) -> None:
    keep_routing(KEY, {"a": [1, 2]}, environ)
    file_of(environ).write_bytes(content)
    assert known_routing(KEY, environ) == {}
    keep_routing(KEY, {"a": [3, 4]}, environ)
    assert known_routing(KEY, environ) == {"a": (3, 4)}
    assert json.loads(file_of(environ).read_text())["schema"] == 1


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep_routing(KEY, {"a": [1]}, {"OUTSIZE_CACHE": str(tmp_path / "file")})
    assert known_routing(KEY, {"OUTSIZE_CACHE": str(tmp_path / "file")}) == {}
