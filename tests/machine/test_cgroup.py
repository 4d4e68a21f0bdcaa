from pathlib import Path

import pytest
from machine.fake_host import GIB, V1_CPU_MOUNT, V1_MOUNT, V2_MOUNT, fake_host

from outsize.machine.linux import MemoryLimit, cpu_quota, memory_limits

V1 = "/sys/fs/cgroup/memory"
V2 = "/sys/fs/cgroup"
NO_LIMIT = 9223372036854771712


def v1(path: str, root: str = "/") -> dict[str, object]:
    return {
        "/proc/self/cgroup": f"4:memory:{path}\n1:cpu:/\n0::/\n",
        "/proc/self/mountinfo": V1_MOUNT.format(root=root),
    }


def v2(path: str, root: str = "/") -> dict[str, object]:
    return {"/proc/self/cgroup": f"0::{path}\n", "/proc/self/mountinfo": V2_MOUNT.format(root=root)}


def test_no_groups_no_limits(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {})
    assert memory_limits(host) == ()
    assert cpu_quota(host) is None


def test_v1_counts_every_ancestor_and_takes_cache_for_free(tmp_path: Path) -> None:
    files = v1("/outer/inner") | {
        f"{V1}/outer/inner/memory.limit_in_bytes": NO_LIMIT,
        f"{V1}/outer/memory.limit_in_bytes": 7 * GIB,
        f"{V1}/outer/memory.usage_in_bytes": 5 * GIB,
        f"{V1}/outer/memory.stat": f"cache 1\ntotal_inactive_file {3 * GIB}\ntotal_active_file {GIB}\nodd line here\n",
        f"{V1}/memory.limit_in_bytes": NO_LIMIT,
    }
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(7 * GIB, 6 * GIB),)


def test_v1_in_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files = v1("/docker/abc/job", root="/docker/abc") | {f"{V1}/job/memory.limit_in_bytes": 2 * GIB}
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(2 * GIB, 2 * GIB),)


@pytest.mark.parametrize("path", ["/kubepods/pod1", "/../elsewhere"])
def test_v1_path_outside_the_mount_means_its_top(tmp_path: Path, path: str) -> None:
    files = v1(path, root="/docker/abc") | {
        f"{V1}/memory.limit_in_bytes": 2 * GIB,
        f"{V1}/memory.usage_in_bytes": 3 * GIB,
    }
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(2 * GIB, 0),)


def test_v1_path_that_is_not_visible_below_the_mount(tmp_path: Path) -> None:
    files = v1("/docker/abc") | {f"{V1}/memory.limit_in_bytes": 2 * GIB}
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(2 * GIB, 2 * GIB),)


def test_v1_limit_of_an_invisible_ancestor(tmp_path: Path) -> None:
    files = v1("/") | {
        f"{V1}/memory.limit_in_bytes": NO_LIMIT,
        f"{V1}/memory.stat": f"hierarchical_memory_limit {GIB}\n",
    }
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(GIB, GIB),)


def test_v2_counts_every_ancestor_and_both_limits(tmp_path: Path) -> None:
    files = v2("/user/job") | {
        f"{V2}/user/job/memory.max": "max\n",
        f"{V2}/user/job/memory.high": f"{3 * GIB}\n",
        f"{V2}/user/job/memory.current": 2 * GIB,
        f"{V2}/user/job/memory.stat": f"anon 1\ninactive_file {GIB}\nslab_reclaimable {GIB // 2}\n",
        f"{V2}/user/memory.max": 8 * GIB,
        f"{V2}/user/memory.current": GIB,
    }
    found = memory_limits(fake_host(tmp_path, files))
    assert found == (MemoryLimit(3 * GIB, 5 * GIB // 2), MemoryLimit(8 * GIB, 7 * GIB))


def test_v2_usage_below_cache_is_not_below_nothing(tmp_path: Path) -> None:
    files = v2("/") | {f"{V2}/memory.max": GIB, f"{V2}/memory.current": 1, f"{V2}/memory.stat": "inactive_file 4096\n"}
    assert memory_limits(fake_host(tmp_path, files)) == (MemoryLimit(GIB, GIB),)


def test_cpu_quota_v1(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "/proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/job\n",
        "/proc/self/mountinfo": V1_CPU_MOUNT,
        "/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "150000\n",
        "/sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(fake_host(tmp_path, files)) == 1.5


def test_cpu_quota_v2_takes_the_least(tmp_path: Path) -> None:
    files = v2("/user/job") | {f"{V2}/user/job/cpu.max": "max 100000\n", f"{V2}/user/cpu.max": "200000 100000\n"}
    assert cpu_quota(fake_host(tmp_path, files)) == 2.0
