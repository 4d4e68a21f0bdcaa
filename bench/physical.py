"""The disk's own rate, measured on the very files of a checkpoint, as a streamer would read them.

    python bench/physical.py /data/opt-6.7b

Eight threads, direct reads of 8 MiB into page-aligned buffers on huge pages. The last line on stdout is a JSON object.
Direct reads go around the page cache, so the figure is the drive's, cached or not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import threading
import time
from pathlib import Path

_READ_BYTES = 8 << 20
_THREADS = 8


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's weight files (or the one file that was named)."""
    if folder.is_file():
        return [folder]
    files = sorted(itertools.chain(folder.glob("*.safetensors"), folder.glob("*.bin"), folder.glob("*.gguf")))
    if not files:
        raise SystemExit(f"{folder}: no weight files there")
    return files


def disk_rate(folder: Path, seconds: float = 4.0) -> dict[str, float]:
    """Read for about ``seconds`` and return ``{"bytes", "seconds", "bytes_per_s"}``.

    Starts over at the beginning if the files end first. Raises SystemExit where the file system refuses direct reads: a
    buffered figure would be the page cache's.
    """
    try:
        descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in weight_files(folder)]
    except OSError as error:
        raise SystemExit(
            f"{folder}: direct reads are refused here ({error}); the disk's rate cannot be measured"
        ) from error
    places = [
        (descriptor, offset)
        for descriptor in descriptors
        for offset in range(0, os.fstat(descriptor).st_size - _READ_BYTES + 1, _READ_BYTES)
    ]
    if not places:
        raise SystemExit(f"{folder}: no file holds {_READ_BYTES} bytes; too small to measure a disk")
    order = itertools.cycle(places)
    lock = threading.Lock()
    counts = [0] * _THREADS
    began = time.monotonic()

    def read(number: int) -> None:
        # Private: shared anonymous memory gets no huge pages, and reads into small ones reach half the rate here.
        with mmap.mmap(-1, 2 * _READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            with memoryview(memory) as whole, whole[:_READ_BYTES] as buffer:
                while time.monotonic() - began < seconds:
                    with lock:
                        descriptor, offset = next(order)
                    counts[number] += os.preadv(descriptor, [buffer], offset)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    for descriptor in descriptors:
        os.close(descriptor)
    return {"bytes": sum(counts), "seconds": elapsed, "bytes_per_s": sum(counts) / elapsed}


def memory_rate(nbytes: int = 2 << 30, rounds: int = 3) -> float:
    """Bytes per second at which memory is read and nothing else: the best of some sums over more than any cache holds.

    By outsize's own loop, which reads from several places by turns: the fastest found, a third faster than torch's sum
    and than a loop of vector loads with prefetches from one place (19 to 28 against 16 to 20 GB/s on two cores, in the
    same minutes).
    """
    import torch

    from outsize.kernels.memory_rate import total

    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        numbers = torch.frombuffer(memory, dtype=torch.float32)
        numbers.fill_(1.0)
        best = 0.0
        for _ in range(rounds):
            began = time.monotonic()
            total(numbers)
            best = max(best, nbytes / (time.monotonic() - began))
        del numbers
    return best


def matmul_rate(tokens: int = 512, rounds: int = 5) -> float:
    """Floating-point operations per second of torch's bfloat16 matmul, [tokens, 4096] by a Llama-7B's [11008, 4096]."""
    import torch

    weight, x = torch.randn(11008, 4096, dtype=torch.bfloat16), torch.randn(tokens, 4096, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(rounds):
        began = time.monotonic()
        torch.nn.functional.linear(x, weight)
        best = max(best, 2 * tokens * weight.numel() / (time.monotonic() - began))
    return best


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    print(json.dumps(disk_rate(arguments.folder, arguments.seconds)))


if __name__ == "__main__":
    main()
