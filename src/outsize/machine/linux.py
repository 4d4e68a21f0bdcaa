"""What Linux says of this machine: its files below /proc and /sys, mounts, and the limits of control groups.

Every ancestor group's limit binds, so all of them are read, as far up as the mount shows them. In a container the
process's own group often lies outside what is mounted; then the mount's top is the nearest group that can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 2**60  # v1 writes "no limit" as 2**63 less a page; nobody has an exbibyte


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo. ``root`` is the part of the file system that is mounted."""

    root: str
    point: str
    fstype: str
    source: str
    options: tuple[str, ...]  # the super block's: for cgroup v1 they name the controllers


class Host:
    """Reads the kernel's files below ``root``; a test gives a folder of its own for the root, and what it pretends."""

    def __init__(self, root: Path = Path("/"), *, cpus: frozenset[int] | None = None, name: str | None = None) -> None:
        self.root = root
        self.affinity = cpus if cpus is not None else frozenset(os.sched_getaffinity(0))
        self.name = name if name is not None else os.uname().nodename

    def text(self, path: str | PurePosixPath) -> str | None:
        """The file's text, or None where it is missing or unreadable."""
        try:
            return (self.root / str(path).lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Whether the path is there."""
        return (self.root / path.lstrip("/")).exists()

    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted, in the order of mounting; () where the kernel does not say."""
        return tuple(map(_parse_mount, (self.text("/proc/self/mountinfo") or "").splitlines()))

    def space(self, path: Path) -> tuple[int, int]:
        """Capacity and free bytes (for ordinary users) of the file system that holds ``path`` or will hold it."""
        while not path.exists() and path != path.parent:
            path = path.parent
        figures = os.statvfs(path)
        return figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize


def _parse_mount(line: str) -> Mount:
    """One line: ``36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue``."""
    ours, _, theirs = line.partition(" - ")
    _, _, _, root, point, *_ = ours.split()
    fstype, source, options = [*theirs.split(" "), "", ""][:3]
    return Mount(_unescape(root), _unescape(point), fstype, _unescape(source), tuple(options.split(",")))


def _unescape(text: str) -> str:
    """Blanks in mountinfo stand as octal escapes."""
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, char)
    return text


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The bytes a group may hold, and those of them it could still take, reclaimable page cache included."""

    limit_bytes: int
    free_bytes: int


def memory_limits(host: Host) -> tuple[MemoryLimit, ...]:
    """The memory limits of this process's group and all groups above it; () where there is none."""
    limits = [_memory_v1(host, folder) for folder in _folders(host, "memory")]
    limits += [_memory_v2(host, folder) for folder in _folders(host, "")]
    return tuple(limit for limit in limits if limit is not None)


def cpu_quota(host: Host) -> float | None:
    """Processors' worth of time that the groups grant, the least of all ancestors; None where nothing bounds it."""
    pairs = [(f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us") for folder in _folders(host, "cpu")]
    grants = [((host.text(quota) or "max").split() + (host.text(period) or "").split()) for quota, period in pairs]
    grants += [(host.text(f"{folder}/cpu.max") or "max").split() for folder in _folders(host, "")]
    # v1 says -1 for no quota, v2 says max.
    shares = [int(grant[0]) / int(grant[1]) for grant in grants if len(grant) == 2 and grant[0].isdigit()]
    return min(shares, default=None)


def processor_seconds(host: Host) -> float:
    """Seconds that the processors this process may run on have worked since the system started, for whomever."""
    worked = 0
    for line in (host.text("/proc/stat") or "").splitlines():
        name, *ticks = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in host.affinity:
            user, nice, system, _, _, irq, softirq, steal = (int(tick) for tick in ticks[:8])
            worked += user + nice + system + irq + softirq + steal
    return worked / os.sysconf("SC_CLK_TCK")


def _folders(host: Host, controller: str) -> Iterator[PurePosixPath]:
    """The folders of this process's group and its ancestors, innermost first. ``controller``: of v1, or "" for v2."""
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for mount in host.mounts():
            v1 = mount.fstype == "cgroup" and controller in mount.options
            if v1 if controller else mount.fstype == "cgroup2":
                point = PurePosixPath(mount.point)
                folder = point / _below(path, mount.root)
                yield folder
                yield from (parent for parent in folder.parents if parent.is_relative_to(point))
                break


def _below(path: str, root: str) -> PurePosixPath:
    """The group's path below the mount's top; "." for a group that lies outside the mount."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(root):
        return PurePosixPath(".")
    return group.relative_to(root)


def _memory_v1(host: Host, folder: PurePosixPath) -> MemoryLimit | None:
    stat = _stat(host, folder)
    # The hierarchical limit also covers ancestors that a container cannot see.
    limit = min(_number(host, folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit", UNLIMITED))
    if limit >= UNLIMITED:
        return None
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return _limit(limit, _number(host, folder / "memory.usage_in_bytes", missing=0), cache)


def _memory_v2(host: Host, folder: PurePosixPath) -> MemoryLimit | None:
    # Above memory.high a group is throttled until it crawls, so that bounds it as memory.max does.
    limit = min(_number(host, folder / "memory.max"), _number(host, folder / "memory.high"))
    if limit >= UNLIMITED:
        return None
    stat = _stat(host, folder)
    cache = stat.get("inactive_file", 0) + stat.get("active_file", 0) + stat.get("slab_reclaimable", 0)
    return _limit(limit, _number(host, folder / "memory.current", missing=0), cache)


def _limit(limit: int, usage: int, reclaimable: int) -> MemoryLimit:
    """The kernel drops page cache before it refuses memory, so the cache counts as free, as in MemAvailable."""
    held = max(0, usage - reclaimable)
    return MemoryLimit(limit, max(0, limit - held))


def _number(host: Host, path: PurePosixPath, missing: int = UNLIMITED) -> int:
    text = (host.text(path) or "").strip()
    return int(text) if text.isdigit() else missing


def _stat(host: Host, folder: PurePosixPath) -> dict[str, int]:
    pairs = (line.split() for line in (host.text(folder / "memory.stat") or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
