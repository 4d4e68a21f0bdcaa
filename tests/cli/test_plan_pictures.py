"""Bars in text and in files."""

import sys

import pytest

from outsize.cli import plot
from outsize.errors import OutsizeError, UsageError
from outsize.machine.describe import parse_machine
from outsize.models.resolve import shipped_spec
from outsize.planner.plan import Usage
from outsize.planner.planner import make_request, plan_all


def plans(machine="2x-titan-rtx"):
    spec = shipped_spec("facebook/opt-66b")
    return plan_all(spec, parse_machine(machine), make_request(spec))


def test_a_bar_shows_its_parts_in_proportion():
    usage = Usage(weights_bytes=50, kv_bytes=25, capacity_bytes=100)
    assert plot.bar(usage, width=8) == "████▓▓··"
    assert plot.bar(usage, width=8, unicode=False) == "####kk.."
    assert plot.bar(usage, width=4, colour=True) == "\033[34m██\033[0m\033[32m▓\033[0m·"


def test_small_parts_are_seen_and_too_much_is_full():
    assert plot.bar(Usage(weights_bytes=1, kv_bytes=1, capacity_bytes=1000), width=6) == "█▓····"
    assert plot.bar(Usage(weights_bytes=150, kv_bytes=150, capacity_bytes=100), width=6) == "███▓▓▓"
    assert plot.bar(Usage(), width=3) == "···"
    full = Usage(100, 1, 1, 1, 1, capacity_bytes=100)
    assert len(plot.bar(full, width=5)) == 5


def test_the_legend_names_what_is_there():
    assert plot.legend([Usage(weights_bytes=1), Usage(ring_bytes=1)]) == "█ weights  ░ ring  · free"
    assert plot.legend([Usage(kv_bytes=1)], unicode=False) == "k KV cache  . free"


def test_every_tier_has_a_line():
    lines = plot.tiers(plans()[0])
    assert [line.split()[0] for line in lines] == ["gpu0", "gpu1", "ram", "disk"]
    assert "weights" in lines[0]


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_plots_are_written(tmp_path, suffix, start):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plan{suffix}"
    plot.plot(plans(), 2, "a title", path)
    assert path.read_bytes().startswith(start)


def test_what_cannot_be_plotted_says_why(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="svg"):
        plot.plot(plans(), 0, "", tmp_path / "plan.jpg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutsizeError, match="pip install"):
        plot.plot(plans(), 0, "", tmp_path / "plan.svg")


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(OutsizeError, match="cannot write"):
        plot.plot(plans(), 0, "", tmp_path / "none" / "plan.svg")


def test_headlines():
    native = plans()[0]
    assert "s/token" in plot.headline(native)
    assert "on disk" in plot.headline(native)
    assert "lacks" in plot.headline(plans("ram=1GiB,disk=1TiB")[0])
