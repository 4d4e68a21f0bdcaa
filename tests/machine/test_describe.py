import json
from pathlib import Path

import pytest

from outsize.errors import UsageError
from outsize.machine.describe import PRESETS, parse_machine, preset_names
from outsize.machine.detect import identity
from outsize.machine.profile import Profile, profile_path, save_profile

GIB = 2**30


@pytest.mark.parametrize("name", preset_names())
def test_presets(name: str) -> None:
    machine = parse_machine(name)
    assert machine.name == name
    assert json.loads((PRESETS / f"{name}.json").read_text())["note"]
    assert machine.disk.capacity_bytes > 0
    for device in machine.devices:
        assert device.free_bytes == device.capacity_bytes
        assert device.is_assumed("bytes_per_s")
        if device.kind != "disk":
            assert (
                set(device.flops)
                == set(device.matmul_bytes_per_s)
                == {"bfloat16", "float16", "float32", "int8", "int4"}
            )
            assert max(device.matmul_bytes_per_s.values()) <= device.bytes_per_s
            assert device.is_assumed("flops")


def test_the_reference_machine() -> None:
    machine = parse_machine("2x-titan-rtx")
    assert [device.name for device in machine.devices] == ["gpu0", "gpu1", "ram", "disk"]
    assert {(gpu.capacity_bytes, gpu.bytes_per_s, gpu.link_bytes_per_s) for gpu in machine.gpus} == {
        (24 * GIB, 672e9, 12e9)
    }
    assert machine.gpus[0].flops["bfloat16"] == machine.gpus[0].flops["float32"]
    assert (machine.ram.capacity_bytes, machine.disk.bytes_per_s, machine.cores) == (64 * GIB, 3e9, 10)


def test_every_gpu_of_a_preset_has_a_sheet() -> None:
    assert {gpu.bytes_per_s for name in preset_names() for gpu in parse_machine(name).gpus}.isdisjoint({300e9})


def test_inline() -> None:
    machine = parse_machine("gpu=24GiB, gpu=24GiB:10GiB@900GB/s,ram=64GiB,disk=2TiB@3GB/s,cores=6")
    assert [(d.name, d.capacity_bytes, d.free_bytes) for d in machine.devices] == [
        ("gpu0", 24 * GIB, 24 * GIB),
        ("gpu1", 24 * GIB, 10 * GIB),
        ("ram", 64 * GIB, 64 * GIB),
        ("disk", 2048 * GIB, 2048 * GIB),
    ]
    assert (machine.gpus[1].bytes_per_s, machine.disk.bytes_per_s, machine.cores) == (900e9, 3e9, 6)
    assert all(device.is_assumed("bytes_per_s") for device in machine.devices)


@pytest.mark.parametrize(
    "text",
    [
        "gpu=24GiB",
        "ram=8GiB,ram=8GiB",
        "ram=8GiB,tape=1",
        "ram=8GiB,",
        "ram=",
        "ram=8GiB,gpu=0",
        "ram=8GiB@fast",
        "ram=8GiB:",
        "ram=8GiB:9GiB",
        "ram=8GiB,cores=two",
        "ram=8GiB,cores=2,cores=2",
        "ram=8GiB,cores=0",
    ],
)
def test_inline_nonsense(text: str) -> None:
    with pytest.raises(UsageError):
        parse_machine(text)


def test_a_name_that_is_none_lists_the_presets() -> None:
    with pytest.raises(UsageError, match=r"no such machine.*2x-titan-rtx.*laptop-16gb"):
        parse_machine("my-machine")


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my=box.json"
    path.write_text(json.dumps({"devices": [{"kind": "ram", "capacity_bytes": "8GiB"}]}))
    machine = parse_machine(str(path))
    assert (machine.name, machine.ram.capacity_bytes) == ("my=box", 8 * GIB)
    path.write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        parse_machine(str(path))
    with pytest.raises(UsageError, match="no machine can be read"):
        parse_machine(str(tmp_path / "none"))


def test_local_takes_the_kept_measurements(tmp_path: Path) -> None:
    environ = {"OUTSIZE_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    assert parse_machine(model_path=tmp_path, environ=environ).ram.is_assumed("bytes_per_s")
    save_profile(Profile(identity(), memory_bytes_per_s=45e9), profile_path(environ))
    machine = parse_machine("local", model_path=tmp_path, environ=environ)
    assert machine.ram.bytes_per_s == 45e9
    assert not machine.ram.is_assumed("bytes_per_s")
