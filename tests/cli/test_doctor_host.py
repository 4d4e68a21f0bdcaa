"""What doctor says of the host, with each fault really there, or in made-up files of the kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from machine.fake_host import V1_CPU_MOUNT, fake_host

from outsize.cli import command_doctor, doctor_host
from outsize.machine.linux import Host


def test_a_process_that_computes_beside_is_seen() -> None:
    assert doctor_host.neighbours(Host()).name == "neighbours"
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        check = doctor_host.neighbours(Host())
    finally:
        for process in beside:
            process.kill()
            process.wait()
    assert check.state == "note"
    assert "others take" in check.value


def test_swap_in_use_is_said(tmp_path: Path) -> None:
    used = fake_host(tmp_path / "a", {"/proc/meminfo": "SwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n"})
    (check,) = doctor_host.swap(used)
    assert (check.state, "1.0 GiB in use" in check.value) == ("note", True)
    assert not list(doctor_host.swap(fake_host(tmp_path / "b", {"/proc/meminfo": "SwapTotal: 9 kB\nSwapFree: 9 kB\n"})))


def test_a_quota_is_said(tmp_path: Path) -> None:
    files = {
        "/proc/self/cgroup": "3:cpu,cpuacct:/\n",
        "/proc/self/mountinfo": V1_CPU_MOUNT,
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    check = next(doctor_host.processor(fake_host(tmp_path, dict(files))))
    assert "1.5 cores of time by its control group" in check.value


@pytest.mark.parametrize(("text", "state"), [("always [madvise] never", "ok"), ("[never] x", "note"), ("", "note")])
def test_huge_pages(tmp_path: Path, text: str, state: str) -> None:
    host = fake_host(tmp_path, {"/sys/kernel/mm/transparent_hugepage/enabled": text})
    assert doctor_host.huge_pages(host).state == state


def test_what_is_installed_is_held_against_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=99", "no-such-package>=1", "rich>=1", "transformers>=99", "lm_eval; extra == 'eval'"]
    monkeypatch.setattr(command_doctor.metadata, "requires", lambda name: wanted)
    checks = {check.name: check for check in command_doctor.requirements()}
    assert checks.keys() == {"torch", "no-such-package"}
    assert {check.state for check in checks.values()} == {"broken"}
    assert checks["torch"].remedy == "pip install 'torch>=99'"
