from __future__ import annotations

from typing import Any

import pytest

from outsize.errors import UsageError
from outsize.models.resolve import shipped_spec
from outsize.options import LoadOptions

TWO_GPUS = "gpu=24GiB,gpu=24GiB,ram=64GiB,disk=2TiB@3GB/s"


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"weights": "int3"}, "one of native, int8, int4"),
        ({"ram": "6GoB"}, "not a size"),
        ({"gpu_memory": "6GiB,x"}, "not a size"),
        ({"weight_limits": "ram"}, "--weight-limit does not understand 'ram'"),
        ({"weight_limits": {"ram": "x"}}, "not a size"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(keywords: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        LoadOptions(**keywords)


def test_texts_mean_what_sizes_mean() -> None:
    spec = shipped_spec("facebook/opt-30b")
    assert spec is not None
    written = LoadOptions(ram="2GiB", gpu_memory="8GiB,4GiB", weight_limits="ram=0, gpu0=1GiB")
    counted = LoadOptions(ram=2 << 30, gpu_memory=[8 << 30, 4 << 30], weight_limits={"ram": 0, "gpu0": 1 << 30})
    machine = written.machine(TWO_GPUS)
    assert written.request(spec, machine) == counted.request(spec, machine)
    assert LoadOptions(gpu_memory="8GiB").request(spec, machine).gpu_budgets == (8 << 30,) * 2
    with pytest.raises(UsageError, match="need one size or 2, have 3"):
        LoadOptions(gpu_memory=[1, 2, 3]).request(spec, machine)
    with pytest.raises(UsageError, match="no tier 'gpu2'"):
        LoadOptions(weight_limits={"gpu2": 1}).request(spec, machine)


def test_without_gpus() -> None:
    assert [device.name for device in LoadOptions(no_gpu=True).machine(TWO_GPUS).devices] == ["ram", "disk"]
