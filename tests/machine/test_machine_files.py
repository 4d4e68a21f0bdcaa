import json
from dataclasses import replace
from typing import Any

import pytest

from outsize.errors import UsageError
from outsize.machine.describe import machine_from_json, machine_summary, machine_to_json
from outsize.machine.detect import this_machine
from outsize.machine.machine import Overheads

RAM = {"kind": "ram", "capacity_bytes": "8GiB"}


def described(*devices: object, **more: object) -> dict[str, Any]:
    return {"devices": list(devices), **more}


def test_there_and_back() -> None:
    machine = this_machine(environ={"OUTSIZE_EMULATE_GPUS": "64MiB,1GiB", "HOME": "/"})
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine))), "file") == machine


def test_overheads_are_as_given_or_assumed() -> None:
    machine = machine_from_json(described(RAM, overheads={"block_s": 1e-3}), "box")
    assert machine.overheads == replace(Overheads(), block_s=1e-3)
    for wrong in ({"lunch_s": 1}, {"block_s": "slow"}, 3):
        with pytest.raises(UsageError, match="overheads"):
            machine_from_json(described(RAM, overheads=wrong), "box")


def test_what_is_missing_is_assumed() -> None:
    machine = machine_from_json(
        described(RAM, {"kind": "gpu", "label": "NVIDIA TITAN RTX", "capacity_bytes": 5}), "box"
    )
    assert machine.name == "box"
    gpu, ram, disk = machine.devices
    assert (gpu.name, gpu.free_bytes, gpu.bytes_per_s) == ("gpu0", 5, 672e9)
    assert gpu.is_assumed("flops")
    assert (ram.capacity_bytes, ram.bytes_per_s) == (8 * 2**30, 40e9)
    assert ram.assumed == {"bytes_per_s", "matmul_bytes_per_s", "flops"}
    assert (disk.capacity_bytes, disk.free_bytes) == (0, 0)


def test_what_is_given_stands_and_bounds_what_is_not() -> None:
    given = RAM | {
        "bytes_per_s": "10GB/s",
        "flops": {"bfloat16": 5},
        "free_bytes": "2GiB",
        "assumed": ["flops:float32"],
    }
    ram = machine_from_json(described(given, cores=4), "box").ram
    assert (ram.bytes_per_s, ram.free_bytes, ram.flops["bfloat16"]) == (10e9, 2 * 2**30, 5)
    assert max(ram.matmul_bytes_per_s.values()) == 9e9
    assert ram.assumed == {"flops:float32"}


def test_the_object_of_plan_json_describes_the_machine_again() -> None:
    machine = machine_from_json(described({"kind": "gpu", "capacity_bytes": 9}, RAM | {"assumed": False}), "box")
    summary = machine_summary(machine)
    assert summary["devices"][0] == {
        "name": "gpu0",
        "capacity_bytes": 9,
        "free_bytes": 9,
        "bytes_per_s": 300e9,
        "assumed": True,
    }
    assert [device["assumed"] for device in summary["devices"]] == [True, False, True]
    assert machine_from_json(summary, "again") == machine


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"devices": "ram"},
        described(),
        described(RAM, RAM),
        described(RAM, *[{"kind": "disk", "capacity_bytes": 1}] * 2),
        described("ram"),
        described({"kind": "tape", "capacity_bytes": 1}),
        described({"capacity_bytes": 1}),
        described(RAM, colour="grey"),
        described(RAM, cores=0),
        described(RAM, cores=True),
        described(RAM | {"colour": "grey"}),
        described(RAM | {"capacity_bytes": 0}),
        described(RAM | {"capacity_bytes": "lots"}),
        described({"kind": "ram"}),
        described(RAM | {"capacity_bytes": -1}),
        described(RAM | {"capacity_bytes": 1.5}),
        described(RAM | {"free_bytes": "9GiB"}),
        described(RAM | {"bytes_per_s": 0}),
        described(RAM | {"bytes_per_s": float("nan")}),
        described(RAM | {"bytes_per_s": float("inf")}),
        described(RAM | {"bytes_per_s": True}),
        described(RAM | {"bytes_per_s": "3GB"}),
        described(RAM | {"flops": 3}),
        described(RAM | {"flops": {"bfloat16": None}}),
        described(RAM | {"assumed": "all"}),
        described(RAM | {"assumed": ["colour"]}),
    ],
)
def test_nonsense(value: object) -> None:
    with pytest.raises(UsageError):
        machine_from_json(value, "box")
