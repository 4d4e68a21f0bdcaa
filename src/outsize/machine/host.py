"""The one seam to the operating system's own account of itself: files under /proc and /sys, mounts, affinity."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


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
