"""The probe: what it measures is there, what it cannot measure is named, nothing stays behind."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from outsize import probe
from outsize.errors import DoesNotFit
from outsize.kernels.cpu.library import kernels
from outsize.machine.detect import identity
from outsize.machine.machine import Device, Machine, Overheads
from outsize.machine.profile import GpuFigures, Profile, apply_profile, save_profile
from outsize.probe import disk, overheads, processor

MIB = 1 << 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurements on a few megabytes."""
    monkeypatch.setattr(disk, "CHUNK", MIB)
    monkeypatch.setattr(disk, "SPARE_BYTES", 0)
    monkeypatch.setattr(processor, "SHAPES", ((64, 128), (256, 128)))
    monkeypatch.setattr(processor, "PATTERN", 1 << 12)
    monkeypatch.setattr(processor, "STEP_SECONDS", 0.01)
    monkeypatch.setattr(probe, "BUFFER_BYTES", MIB)
    monkeypatch.setattr(probe, "LEAST_BUFFER_BYTES", MIB // 2)
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    monkeypatch.setattr(overheads, "LARGE", {**overheads.LARGE, **tiny})
    monkeypatch.setattr(overheads, "TOKENS", 8)
    monkeypatch.setattr(overheads, "LONG", 64)
    monkeypatch.setattr(overheads, "PROMPT", 32)


@pytest.mark.usefixtures("small")
def test_everything_is_measured_and_nothing_stays_behind(tmp_path: Path) -> None:
    steps: list[str] = []
    found = probe.measure(tmp_path / "not" / "there", steps.append, {"HOME": str(tmp_path)})
    profile = found.profile
    assert found.disk is not None
    assert found.disk.nbytes == disk.FILE_CHUNKS * MIB
    assert found.disk.least <= found.disk.bytes_per_s <= found.disk.most
    assert profile.memory_bytes_per_s > 0
    compiled = {"bf12"} if kernels() is not None else set()
    measured = {"float32", "bfloat16", "float16", "int8", "int4"} | compiled
    assert set(profile.matmul_bytes_per_s) == set(profile.flops) == measured
    assert set(profile.few_rows_flops) == set(profile.unpack_per_s) == measured
    names = {field.name for field in fields(Overheads)} - (set() if compiled else {"encode_bytes_per_s"})
    assert set(profile.overheads) == names
    assert all(math.isfinite(value) and value >= 0 for value in profile.overheads.values())
    assert 0 < profile.overheads["stream_share"] <= 1
    assert profile.overheads["warm_start_s"] <= profile.overheads["cold_start_s"]
    assert list(tmp_path.iterdir()) == []
    assert steps[0].startswith("disk")
    known = apply_profile(found.machine, profile)
    assert not known.ram.is_assumed("bytes_per_s")
    assert known.disk.is_assumed("bytes_per_s") == (not found.disk.direct)
    assert not known.ram.is_assumed("flops", "bfloat16")


@pytest.mark.usefixtures("small")
def test_weights_are_read_where_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(os.urandom(9 * MIB + 5))
    (tmp_path / "config.json").write_text("{}")
    rate = disk.disk_rate(tmp_path)
    assert rate.nbytes == 9 * MIB
    assert rate.source == f"the weights in {tmp_path}"


@pytest.mark.usefixtures("small")
def test_what_fails_is_left_out_and_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> float:
        raise RuntimeError("no such kernel\nand a stack")

    monkeypatch.setattr(disk, "SPARE_BYTES", 1 << 60)
    monkeypatch.setattr(processor.Bench, "matmul", refuse)
    found = probe.measure(tmp_path)
    assert found.disk is None
    assert found.profile.disks == {}
    assert found.profile.memory_bytes_per_s > 0
    assert any("no room" in line and "need" in line for line in found.left_out)
    assert "not measured: matmuls in bfloat16: no such kernel" in found.left_out


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="no room"), disk.temporary_file(tmp_path, 1 << 60):
        pass


def test_a_temporary_file_goes_whatever_happens(tmp_path: Path) -> None:
    def interrupted() -> None:
        with disk.temporary_file(tmp_path, MIB) as descriptor:
            assert os.fstat(descriptor).st_size == MIB
            assert list(tmp_path.iterdir()) == []  # it has no name even while it is there
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ram = Device("ram", "ram", MIB, MIB, 1e9)
    there = Device("disk", "disk", MIB, MIB, 1e9, uuid="d")
    monkeypatch.setattr(probe, "this_machine", lambda *_, **__: Machine("local", (ram, there), 1))
    monkeypatch.setattr(probe, "disk_rate", lambda folder: disk.DiskRate(2.0, 1.0, 3.0, 4, False, "x"))
    found = probe.measure(tmp_path)
    assert any("memory is free" in line for line in found.left_out)
    assert any("page cache" in line for line in found.left_out)
    assert found.profile.memory_bytes_per_s == 0
    assert found.profile.disks == {}


def test_emulated_gpus_are_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Device("gpu0", "gpu", MIB, MIB, 1e9, emulated=True)
    rest = (Device("ram", "ram", MIB, MIB, 1e9), Device("disk", "disk", MIB, MIB, 1e9, uuid="d"))
    monkeypatch.setattr(probe, "this_machine", lambda *_, **__: Machine("local", (gpu, *rest), 1))
    monkeypatch.setattr(probe, "disk_rate", lambda folder: disk.DiskRate(2.0, 1.0, 3.0, 4, True, "x"))
    found = probe.measure(tmp_path)
    assert any(line.startswith("not measured: gpu0") for line in found.left_out)
    assert found.profile.disks == {"d": 2.0}


def test_what_was_measured_earlier_of_other_drives_is_kept(tmp_path: Path) -> None:
    old = Profile(
        identity(), 1.0, {"float32": 1.0, "float16": 2.0}, {}, {"a": 1.0, "b": 2.0}, {"g": GpuFigures("x", 1.0)}
    )
    save_profile(old, tmp_path / "profile.json")
    machine = Machine("local", (), 1)
    new = Profile(identity(), 0.0, {"float32": 5.0}, {}, {"b": 9.0})
    kept = probe.keep(probe.Findings(machine, new), tmp_path / "profile.json")
    assert kept.disks == {"a": 1.0, "b": 9.0}
    assert kept.memory_bytes_per_s == 1.0
    assert kept.matmul_bytes_per_s == {"float32": 5.0, "float16": 2.0}
    assert kept.gpus == old.gpus
    other = replace(new, identity=replace(identity(), host="another"))
    assert probe.keep(probe.Findings(machine, other), tmp_path / "profile.json") == other


def test_rates_are_taken_over_stretches_after_the_first_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "CHUNK", 10)
    marks = [5.0, 6.0, 7.0, 8.0, *(8.0 + 0.5 * i for i in range(1, 11))]
    assert disk.window_rates(marks) == [20.0] * disk.WINDOWS
    assert disk.window_rates([1.0, 2.0]) == []
