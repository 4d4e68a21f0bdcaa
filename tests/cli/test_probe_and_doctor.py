"""The commands probe and doctor, and what is said on stderr meanwhile."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from outsize import probe
from outsize.cli import command_doctor
from outsize.cli.main import main
from outsize.machine.detect import identity
from outsize.machine.machine import Device, Machine
from outsize.machine.profile import GpuFigures, Profile, load_profile, profile_path
from outsize.probe.disk import DiskRate

GIB = 1 << 30
MACHINE = Machine(
    "local",
    (
        Device("gpu0", "gpu", GIB, GIB, 1e9, "a GPU", uuid="GPU-1"),
        Device("ram", "ram", GIB, GIB, 1e9),
        Device("disk", "disk", GIB, GIB, 1e9, uuid="d"),
    ),
    2,
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """A probe that takes no time; the folders it was asked about."""
    asked: list[Path | None] = []

    def measure(folder: Path | None, say: object) -> probe.Findings:
        asked.append(folder)
        rates = {"float32": 2e9}
        gpu = GpuFigures("a GPU", 6e11, 12e9, rates, {"float32": 1e13})
        profile = Profile(identity(), 4e10, rates, {"float32": 1e11}, {"d": 2.5e9}, {"GPU-1": gpu}, "2026-01-01")
        return probe.Findings(
            MACHINE, profile, DiskRate(2.5e9, 2e9, 3e9, GIB, True, "weights"), 0, ["the weather"], 1.0
        )

    monkeypatch.setattr(probe, "measure", measure)
    return asked


def test_probe_prints_a_table_and_keeps_the_profile(
    measured: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe"]) == 0
    out, err = capsys.readouterr()
    assert "2.5 GB/s" in out
    assert "10,000 GFLOP/s" in out
    assert "the weather" in err
    kept = load_profile(profile_path(), identity()).profile
    assert kept is not None
    assert kept.disks == {"d": 2.5e9}
    assert measured == [None]


def test_probe_prints_one_json_object(
    measured: list[Path | None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["probe", "--path", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["profile"]["memory_bytes_per_s"] == 4e10
    assert printed["left_out"] == ["the weather"]
    assert printed["kept"] == str(profile_path())
    assert measured == [tmp_path]


def test_probe_says_what_it_cannot_keep(
    measured: list[Path | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTSIZE_CACHE", str(tmp_path / "file" / "below"))
    assert main(["probe"]) == 1
    out, err = capsys.readouterr()
    assert "2.5 GB/s" in out
    assert "cannot be kept" in err
    assert "try:" in err


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--path", "/no/such"], 2), (["/no/such/model"], 1), (["gpt2", "--path", "/tmp"], 2)],
)
def test_probe_refuses_what_is_not_there(words: list[str], code: int, measured: list[Path | None]) -> None:
    assert main(["probe", *words]) == code
    assert measured == []


def test_doctor_fits_on_a_screen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--path", str(tmp_path)]) in (0, 1)
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 26
    assert "try: outsize probe" in out


def test_doctor_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["doctor", "--json", "--path", str(tmp_path)])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"torch", "transformers", "memory", "GPUs", "models", "direct reads", "CPU kernels"} <= checks.keys()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("5.19.1", "broken"),
        ("5.20.0", "ok"),
        ("5.23.0", "ok"),
        ("5.24.0.dev0", "ok"),
        ("5.100.0", "ok"),
        ("6.0.0", "broken"),
    ],
)
def test_doctor_knows_the_supported_versions(version: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_doctor.metadata, "version", lambda name: version)
    check = next(check for check in command_doctor.libraries() if check.name == "transformers")
    assert (check.value, check.state) == (version, state)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"transformers{command_doctor.TRANSFORMERS}" in project["dependencies"]


def test_a_gpu_that_torch_does_not_see_is_broken() -> None:
    (check,) = command_doctor.gpus(MACHINE)
    assert check.state == "broken"
    assert "--no-gpu" in check.remedy


def test_emulated_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_EMULATE_GPUS", "1GiB")
    (check,) = command_doctor.gpus(MACHINE)
    assert check.value == "emulated: 1.0 GiB"


def test_something_broken_makes_doctor_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = command_doctor.Check("torch", "gone", "broken", "put it back")
    monkeypatch.setattr(command_doctor, "examine", lambda models: iter([broken]))
    assert main(["doctor"]) == 1


@pytest.mark.parametrize(("version", "state"), [("3.6.0", "ok"), (None, "note")])
def test_doctor_says_what_multiplies_on_gpus(version: str | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if version is None:
            raise command_doctor.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(command_doctor.metadata, "version", found)
    (check,) = command_doctor.gpu_kernels_in_use(MACHINE)
    assert check.state == state
    assert (version or "plain torch") in check.value
    assert not list(command_doctor.gpu_kernels_in_use(replace(MACHINE, devices=MACHINE.devices[1:])))
