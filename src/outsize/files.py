"""Files that are there whole or not at all, and disks that are full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNFINISHED = ".part"  # what the name of a file that is being written ends in


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a name of this process, syncs it and renames it. Raises OSError, and leaves nothing then."""
    draft = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with draft.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last: that a file is there is known to its folder, which has to be synced itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: OSError) -> bool:
    """Whether a disk, or a user's share of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
