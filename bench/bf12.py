"""bf12 beside bfloat16: seconds a matmul, and the rates of making it and of bringing it back.

    python bench/bf12.py [--rows 1,2,4,8,16,64] [--builds avx512,avx2]

Weights of 4096 x 16384, as many as the cache cannot hold, taken in a circle; kinds take turns, so that a machine whose
speed drifts is the same for all. Each figure is the median. The last line on stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from physical import memory_rate
from torch.nn import functional

from outsize.kernels.bf12 import Bf12Weight, encode
from outsize.kernels.cpu.library import describe
from outsize.kernels.dispatch import linear
from outsize.models.bf12_layout import bf12_bytes
from outsize.store.buffer import Memory

OUT, INPUTS = 4096, 16384
NBYTES = 2 * OUT * INPUTS
WEIGHTS = 5  # 670 MB as bfloat16, 509 MB as bf12
ROUNDS = 4


def on_huge_pages(nbytes: int) -> torch.Tensor:
    return torch.frombuffer(Memory(nbytes).view, dtype=torch.uint8)


def plain_weights() -> list[torch.Tensor]:
    drawn = (torch.randn(OUT, INPUTS) * 0.02).bfloat16()
    made = [on_huge_pages(NBYTES).view(torch.bfloat16).view(OUT, INPUTS) for _ in range(WEIGHTS)]
    for number, weight in enumerate(made):
        weight.copy_(drawn.roll(number))
    return made


def seconds(kinds: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """The median seconds of each kind, which take turns; called with the number of a weight."""
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, call in kinds.items():
            for number in range(WEIGHTS):
                began = time.perf_counter()
                call(number)
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(some[WEIGHTS:]) for name, some in taken.items()}


def measure(build: str, rows: list[int], plain: list[torch.Tensor]) -> dict[str, float]:
    """Seconds of each thing that is done with a weight."""
    os.environ["OUTSIZE_KERNELS"] = build
    room = [on_huge_pages(bf12_bytes(OUT, INPUTS)) for _ in plain]
    made: list[Bf12Weight | None] = [encode(weight, into=some) for weight, some in zip(plain, room, strict=True)]
    tight = [weight for weight in made if weight is not None]
    whole = torch.empty(OUT, INPUTS, dtype=torch.bfloat16)
    kinds: dict[str, Callable[[int], object]] = {
        "encode": lambda number: encode(plain[number], into=room[number]),
        "expand": lambda number: tight[number].expanded(into=whole),
    }
    for count in rows:
        x = torch.randn(count, INPUTS).bfloat16()
        kinds[f"bf12, {count} rows"] = lambda number, x=x: linear(x, tight[number])
        kinds[f"bf16, {count} rows"] = lambda number, x=x: linear(x, plain[number])
        kinds[f"torch, {count} rows"] = lambda number, x=x: functional.linear(x, plain[number])
    return seconds(kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,4,8,16,64")
    parser.add_argument("--builds", default="auto")
    args = parser.parse_args()
    plain = plain_weights()
    report: dict[str, object] = {"threads": torch.get_num_threads()}
    for build in args.builds.split(","):
        before = memory_rate()
        taken = measure(build, [int(count) for count in args.rows.split(",")], plain)
        rate = statistics.mean((before, memory_rate()))
        print(f"{describe()[0]}; memory read at {rate / 1e9:.1f} GB/s", flush=True)
        for name, took in taken.items():
            # of bf12's bytes where they are what is read, of bfloat16's everywhere else
            nbytes = bf12_bytes(OUT, INPUTS) if name.startswith("bf12") else NBYTES
            print(f"{name:16} {took * 1e3:8.2f} ms {nbytes / took / 1e9:6.1f} GB/s", flush=True)
        report[build] = {"memory_bytes_per_s": rate, **taken}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
