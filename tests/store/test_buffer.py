"""Buffers: aligned, resident only where touched, and gone with the last that looks at them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from outsize.errors import DoesNotFit
from outsize.store.buffer import HUGE_PAGE, Memory

MIB = 1 << 20


def resident() -> int:
    """Bytes of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@pytest.mark.parametrize("nbytes", [0, 1, 4096, HUGE_PAGE, HUGE_PAGE + 4096, 5 * HUGE_PAGE - 1])
def test_aligned_and_as_large_as_asked(nbytes: int) -> None:
    memory = Memory(nbytes)
    assert len(memory.view) == memory.nbytes == nbytes
    if nbytes:
        assert ctypes.addressof(ctypes.c_char.from_buffer(memory.view)) % HUGE_PAGE == 0
        memory.view[-1] = 1


def test_resident_only_once_touched_and_gone_with_the_last_view() -> None:
    before = resident()
    memory = Memory(64 * MIB)
    assert resident() - before < 4 * MIB
    tensor = torch.frombuffer(memory.view, dtype=torch.uint8)
    tensor.fill_(1)
    assert 64 * MIB <= resident() - before < 68 * MIB
    part = tensor[1000:2000].view(10, 100)
    del memory, tensor
    assert int(part.sum()) == 1000
    assert resident() - before >= 64 * MIB
    del part
    assert resident() - before < 4 * MIB


def test_a_last_partial_page_stays_small() -> None:
    before = resident()
    many = [Memory(4096) for _ in range(64)]
    for memory in many:
        memory.view[0] = 1
    assert resident() - before < 4 * MIB


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)  # advice that no kernel knows
    monkeypatch.delattr(mmap, "MADV_NOHUGEPAGE")
    memory = Memory(2 * HUGE_PAGE + 1)
    memory.view[-1] = 7
    assert memory.view[2 * HUGE_PAGE] == 7


def test_no_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(DoesNotFit, match=r"no memory for a buffer: Cannot allocate memory"):
        Memory(MIB)


MAPPED = """
import ctypes, sys
from outsize.store.buffer import give_back_large_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.mallinfo2.restype = Info
give_back_large_memory()
libc.free(libc.malloc(16 << 20))
before = libc.mallinfo2().hblkhd
libc.malloc(4 << 20)
print(libc.mallinfo2().hblkhd - before >= 4 << 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc, or one before 2.33")
@pytest.mark.parametrize(("threshold", "given_back"), [(None, "True"), (str(32 << 20), "False")])
def test_large_memory_is_the_systems_again_once_it_is_freed(threshold: str | None, given_back: str) -> None:
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    env = usual if threshold is None else {**usual, "MALLOC_MMAP_THRESHOLD_": threshold}
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == given_back
