import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outsize.machine.machine import Device, Machine, Overheads
from outsize.machine.profile import (
    SCHEMA,
    GpuFigures,
    Identity,
    KeptProfile,
    Profile,
    apply_profile,
    load_profile,
    profile_path,
    save_profile,
)
from outsize.machine.rates import ALL_RATES

WHO = Identity("box", "A Processor", 4, "outsize 1, torch 2, compiled kernels")
PROFILE = Profile(
    WHO,
    memory_bytes_per_s=30e9,
    matmul_bytes_per_s={"bfloat16": 44e9},
    flops={"bfloat16": 350e9},
    disks={"/dev/nvme0n1": 2.5e9},
    gpus={"GPU-aa": GpuFigures("a card", 600e9, 11e9, {"float16": 500e9}, {"float16": 60e12})},
    date="2026-01-02T03:04:05+00:00",
    overheads={"block_s": 1e-3, "kv_traffic": 2.5},
    versions={"outsize": "0"},
)
MACHINE = Machine(
    "local",
    (
        Device(
            "gpu0", "gpu", 1, 1, 672e9, uuid="GPU-aa", link_bytes_per_s=12e9, flops={"float16": 1}, assumed=ALL_RATES
        ),
        Device("gpu1", "gpu", 1, 1, 672e9, uuid="GPU-bb", assumed=ALL_RATES),
        Device(
            "ram",
            "ram",
            1,
            1,
            20e9,
            matmul_bytes_per_s={"bfloat16": 14e9, "float16": 40e9},
            flops={"bfloat16": 1.0, "float32": 2.0},
            assumed=ALL_RATES - {"link_bytes_per_s"},
        ),
        Device("disk", "disk", 1, 1, 2e9, uuid="/dev/nvme0n1", assumed=frozenset({"bytes_per_s"})),
    ),
)


def test_kept_and_found_again(tmp_path: Path) -> None:
    path = profile_path({"OUTSIZE_CACHE": str(tmp_path / "new")})
    save_profile(PROFILE, path)
    assert load_profile(path, WHO) == KeptProfile(PROFILE)
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(PROFILE, path)
    with pytest.raises(TypeError):
        save_profile(replace(PROFILE, date=object()), path)  # type: ignore[arg-type]
    assert load_profile(path, WHO).profile == PROFILE
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_was_measured(tmp_path: Path) -> None:
    kept = load_profile(tmp_path / "profile.json", WHO)
    assert kept.profile is None
    assert "nothing was measured" in kept.reason


def test_unreadable(tmp_path: Path) -> None:
    assert "cannot be read" in load_profile(tmp_path, WHO).reason


@pytest.mark.parametrize("other", [replace(WHO, host="b"), replace(WHO, cpu="b"), replace(WHO, cores=1)])
def test_another_machine(tmp_path: Path, other: Identity) -> None:
    path = tmp_path / "profile.json"
    save_profile(PROFILE, path)
    kept = load_profile(path, other)
    assert kept.profile is None
    assert "another machine (box, 4 cores of A Processor)" in kept.reason


def test_another_version_of_what_computes(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(PROFILE, path)
    kept = load_profile(path, replace(WHO, software="outsize 1, torch 3, compiled kernels"))
    assert kept.profile is None
    assert "are of outsize 1, torch 2, compiled kernels, and this is outsize 1, torch 3" in kept.reason
    assert "outsize probe" in kept.reason


def stored(**changes: Any) -> str:
    gpu = {"label": "", "bytes_per_s": 1, "link_bytes_per_s": 1, "matmul_bytes_per_s": {}, "flops": {}}
    whole = {"schema": SCHEMA, "identity": {"host": "box", "cpu": "A", "cores": 1}, "gpus": {"GPU-aa": gpu}}
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        "\x00",
        stored(identity={}),
        stored(unknown=1),
        stored(gpus=[]),
        stored(gpus={"GPU-aa": {"bytes_per_s": -1}}),
        stored(gpus={"GPU-aa": {"flops": {"float16": "fast"}}}),
        stored(disks={"/dev/vda": float("nan")}),
        stored(memory_bytes_per_s=None),
        stored(flops=None),
        stored(overheads={"block_s": -1}),
        stored(overheads={"lunch_s": 1}),
    ],
)
def test_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    kept = load_profile(path, WHO)
    assert kept.profile is None
    assert "damaged" in kept.reason


def test_another_version(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(stored(schema=SCHEMA - 1))
    assert "another version" in load_profile(path, WHO).reason


def test_measured_rates_replace_assumed_ones() -> None:
    machine = apply_profile(MACHINE, PROFILE)
    assert machine.overheads == replace(Overheads(), block_s=1e-3, kv_traffic=2.5)
    gpu, other, ram, disk = machine.devices
    assert (gpu.bytes_per_s, gpu.link_bytes_per_s, gpu.assumed) == (600e9, 11e9, set())
    assert gpu.flops == {"float16": 60e12}
    assert other == MACHINE.devices[1]
    assert ram.bytes_per_s == 30e9
    # What was measured stands, also above the memory rate of another minute; what was not is bounded by it.
    assert ram.matmul_bytes_per_s == {"bfloat16": 44e9, "float16": 30e9}
    assert ram.assumed == {"matmul_bytes_per_s:float16", "flops:float32"}
    assert not ram.is_assumed("flops", "bfloat16")
    assert ram.is_assumed("flops", "float32")
    assert (disk.bytes_per_s, disk.assumed) == (2.5e9, set())


def test_nothing_measured_changes_nothing() -> None:
    assert apply_profile(MACHINE, None) is MACHINE
    ram = apply_profile(MACHINE, Profile(WHO)).ram
    assert ram.assumed == MACHINE.ram.assumed
