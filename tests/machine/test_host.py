import os
from pathlib import Path

import pytest
from machine.fake_host import fake_host

from outsize.machine.linux import Host, Mount, processor_seconds


def test_text_of_what_is_and_is_not_there(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {"/sys/there": "yes"})
    assert host.text("/sys/there") == "yes"
    assert host.text("/sys/missing") is None
    assert host.text("/sys") is None
    assert host.exists("/sys/there")
    assert not host.exists("/sys/missing")


def test_the_real_host() -> None:
    host = Host()
    assert host.affinity == os.sched_getaffinity(0)
    assert host.name == os.uname().nodename


def test_mounts(tmp_path: Path) -> None:
    lines = (
        "36 35 98:0 /part /my\\040data rw,noatime master:1 shared:2 - ext4 /dev/sda1 rw,errors=continue\n"
        "37 35 0:5 / /empty rw - tmpfs \n"
    )
    mounts = fake_host(tmp_path, {"/proc/self/mountinfo": lines}).mounts()
    assert mounts[0] == Mount("/part", "/my data", "ext4", "/dev/sda1", ("rw", "errors=continue"))
    assert mounts[1] == Mount("/", "/empty", "tmpfs", "", ("",))


def test_space_of_a_folder_that_will_be(tmp_path: Path) -> None:
    capacity, free = Host().space(tmp_path / "not" / "yet")
    assert capacity >= free > 0


STAT = "cpu  9 9 9 9 9 9 9 9\ncpu0 100 10 50 700 5 1 2 32 0 0\ncpu1 5 0 0 0 0 0 0 0\ncpu9 7 7 7 7 7 7 7 7\nintr 1\n"


def test_processor_seconds_are_those_of_the_processors_that_may_be_used(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {"/proc/stat": STAT}, cpus=2)
    assert processor_seconds(host) == pytest.approx((100 + 10 + 50 + 1 + 2 + 32 + 5) / 100)
    assert processor_seconds(fake_host(tmp_path / "none", {})) == 0
