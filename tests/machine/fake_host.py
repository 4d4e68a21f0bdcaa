"""A made-up /proc and /sys."""

from pathlib import Path

from outsize.machine.linux import Host

GIB = 2**30
ROOT_MOUNT = "27 1 254:0 / / rw,relatime - ext4 /dev/nvme0n1p2 rw\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1_CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def fake_host(root: Path, files: dict[str, object], cpus: int = 4) -> Host:
    defaults: dict[str, object] = {
        "/proc/meminfo": f"MemTotal:       {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:   {60 * 2**20} kB\nHuge: 0\n",
        "/proc/cpuinfo": "model name\t: A Processor\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nmodel name\t: B\n",
        "/proc/self/mountinfo": ROOT_MOUNT,
    }
    for path, text in (defaults | files).items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(text))
    return Host(root, cpus=frozenset(range(cpus)), name="box")
