"""How near the CPU kernels come to the memory's rate, beside torch's own matmuls.

    python bench/kernels.py [--rows 1,4,16,512] [--shapes 4096x4096,16384x4096] [--kinds bf16,int8,int4]
                            [--grouped 8x2x768x2048,8x1x2048x768] [--tokens 1,4]
                            [--builds auto] [--no-torch] [--gib 0.75]

A shape is out x in; a grouped one, experts x weights of each x out x in, is multiplied in one call and, beside it, in a
call for each weight, with ``--tokens`` rows for each expert. The defaults are Qwen3-30B-A3B's: eight of its experts,
gate and up together, and down.

Weights fill ``--gib`` of memory on huge pages and are taken in a circle, so that no cache holds them; calls take turns
with reading the same memory and nothing else, so that a machine whose speed drifts is the same for all. A figure is the
median of ``ROUNDS`` circles, in bytes of weights (integers and scales) per second, and as a share of the memory's rate.
More than 16 rows are given in floating-point operations too. The last line on stdout is a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from outsize.kernels.cpu.library import describe
from outsize.kernels.dispatch import Group, grouped_linear, linear
from outsize.kernels.memory_rate import total
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing
from outsize.store.buffer import Memory

ROUNDS = 7
GROUP = 128
PLAIN = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Way:
    """A call with one weight after the other, and the bytes of weights that a circle reads."""

    name: str
    calls: list[Callable[[], object]]
    nbytes: int


def plain_weights(memory: torch.Tensor, dtype: torch.dtype, out: int, inputs: int) -> list[torch.Tensor]:
    count = out * inputs
    numbers = memory[: len(memory) // (count * dtype.itemsize) * count * dtype.itemsize].view(dtype)
    drawn = (torch.randn(count) * 0.02).to(dtype)
    weights = [part.view(out, inputs) for part in numbers.split(count)]
    for weight in weights:
        weight.view(-1).copy_(drawn)
    return weights


def packed_weights(memory: torch.Tensor, bits: int, out: int, inputs: int) -> list[PackedWeight]:
    packing = Packing(bits, GROUP, words=True, scale="bfloat16")
    memory.view(torch.int64).random_()
    nbytes = out * inputs * bits // 8
    parts = memory[: len(memory) // nbytes * nbytes].split(nbytes)
    made = []
    for part in parts:
        scale = torch.rand(out, inputs // GROUP).bfloat16()
        made.append(PackedWeight(part.view(torch.int32).view(out, -1), scale, None, packing, (out, inputs)))
    return made


def ours(memory: torch.Tensor, kind: str, out: int, inputs: int, rows: int) -> list[Way]:
    x = torch.randn(rows, inputs).to(PLAIN.get(kind, torch.bfloat16))
    if kind in PLAIN:
        weights = plain_weights(memory, PLAIN[kind], out, inputs)
        calls = [lambda weight=weight: linear(x, weight) for weight in weights]
        torchs = [lambda weight=weight: functional.linear(x, weight) for weight in weights]
        nbytes = sum(weight.nbytes for weight in weights)
        return [Way("outsize", calls, nbytes), Way("torch F.linear", torchs, nbytes)]
    packed = packed_weights(memory, BITS[kind], out, inputs)
    calls = [lambda weight=weight: linear(x, weight) for weight in packed]
    return [Way("outsize", calls, sum(weight.values.nbytes + weight.scale.nbytes for weight in packed))]


def grouped(memory: torch.Tensor, kind: str, shape: tuple[int, int, int, int], rows: int) -> list[Way]:
    """All experts' weights in one call, and in one for each."""
    experts, each, out, inputs = shape
    x = torch.randn(experts * rows, inputs).to(PLAIN.get(kind, torch.bfloat16))
    weights: list[torch.Tensor] = []
    if kind in PLAIN:
        weights += plain_weights(memory, PLAIN[kind], out, inputs)
    else:
        weights += packed_weights(memory, BITS[kind], out, inputs)
    layers = [
        [Group(rows, tuple(weights[at : at + each])) for at in range(first, first + experts * each, each)]
        for first in range(0, len(weights) - experts * each + 1, experts * each)
    ]
    if not layers:
        raise SystemExit(f"{experts * each} weights of {out}x{inputs} in {kind} take more than --gib")
    parts = x.split(rows)

    def singly(groups: list[Group]) -> None:
        for part, group in zip(parts, groups, strict=True):
            for weight in group.weights:
                linear(part, weight)

    used = weights[: len(layers) * experts * each]
    nbytes = sum(weight.values.nbytes + weight.scale.nbytes if kind in BITS else weight.nbytes for weight in used)
    together = [lambda groups=groups: grouped_linear(x, groups) for groups in layers]
    apart = [lambda groups=groups: singly(groups) for groups in layers]
    return [Way("one call", together, nbytes), Way(f"{experts * each} calls", apart, nbytes)]


def torchs(memory: torch.Tensor, kind: str, out: int, inputs: int, rows: int) -> list[Way]:
    """torch's own matmuls of integers, in the layouts that they want."""
    x = torch.randn(rows, inputs).bfloat16()
    if kind == "int8":
        parts = memory.view(torch.int8)[: len(memory) // (out * inputs) * out * inputs].view(-1, out, inputs)
        scale = torch.rand(out).bfloat16()  # one per row: it knows no groups
        calls = [lambda part=part: torch._weight_int8pack_mm(x, part, scale) for part in parts]
        return [Way("torch _weight_int8pack_mm", calls, parts.nbytes)]
    nbytes = out * inputs // 2
    count = len(memory) // nbytes
    scales = torch.rand(inputs // GROUP, out, 2).bfloat16()
    layout = torch._convert_weight_to_int4pack_for_cpu(torch.zeros(out, inputs, dtype=torch.int32), 2)
    packs = [memory[i * nbytes : (i + 1) * nbytes].view(layout.shape) for i in range(count)]
    calls = [lambda pack=pack: torch._weight_int4pack_mm_for_cpu(x, pack, GROUP, scales) for pack in packs]
    return [Way("torch _weight_int4pack_mm_for_cpu", calls, count * (nbytes + scales.nbytes))]


def seconds(ways: list[Way]) -> dict[str, float]:
    """The median seconds of a circle of each way; they take turns."""
    taken: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(ROUNDS + 1):
        for way in ways:
            began = time.perf_counter()
            for call in way.calls:
                call()
            taken[way.name].append(time.perf_counter() - began)
    return {name: statistics.median(some[1:]) for name, some in taken.items()}


def measure(
    memory: torch.Tensor, kind: str, shape: tuple[int, ...], rows: int, beside: bool
) -> list[dict[str, object]]:
    """A weight, or several experts' if the shape has four numbers; ``beside`` torch's own matmuls too."""
    ways = [Way("memory", [lambda: total(memory)], memory.nbytes)]
    if len(shape) == 4:
        ways += grouped(memory, kind, shape, rows)
    elif not beside:
        ways += ours(memory, kind, *shape, rows)[:1]
    else:
        ways += ours(memory, kind, *shape, rows)
        ways += torchs(memory, kind, *shape, rows) if kind in BITS else []
        ways.append(Way("torch sum (int64)", [memory.view(torch.int64).sum], memory.nbytes))  # from one place
    taken = seconds(ways)
    read = memory.nbytes / taken["memory"]
    found: list[dict[str, object]] = []
    for way in ways[1:]:
        rate = way.nbytes / taken[way.name]
        work = 2.0 * rows * math.prod(shape) * len(way.calls) / taken[way.name]
        flops = f"{work / 1e9:7.0f} GFLOP/s" if rows > 16 else ""
        name = f"{kind} {'x'.join(map(str, shape))}, {rows} rows, {way.name}"
        print(f"{name:64} {rate / 1e9:6.1f} GB/s, {rate / read:5.2f} of {read / 1e9:5.1f} {flops}", flush=True)
        found.append(
            {"kind": kind, "shape": shape, "rows": rows, "way": way.name, "bytes_per_s": rate, "of_memory": rate / read,
             "flop_per_s": work, "memory_bytes_per_s": read}
        )  # fmt: skip
    return found


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("x"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1")
    parser.add_argument("--shapes", default="4096x4096,16384x4096,4096x16384,4096x11008")
    parser.add_argument("--kinds", default="bf16,int8,int4")
    parser.add_argument("--grouped", default="8x2x768x2048,8x1x2048x768", help="'' for none")
    parser.add_argument("--tokens", default="1,4")
    parser.add_argument("--builds", default="auto")
    parser.add_argument("--gib", type=float, default=0.75)
    parser.add_argument("--no-torch", action="store_true", help="only our kernels")
    args = parser.parse_args()
    memory = torch.frombuffer(Memory(int(args.gib * 2**10) << 20).view, dtype=torch.uint8)
    memory.zero_()
    results: list[dict[str, object]] = []
    with torch.inference_mode():
        for build in args.builds.split(","):
            os.environ["OUTSIZE_KERNELS"] = build
            print(f"{describe()[0]}, {torch.get_num_threads()} threads", flush=True)
            for kind in args.kinds.split(","):
                cases = [*itertools.product(filter(None, args.shapes.split(",")), args.rows.split(","))]
                cases += itertools.product(filter(None, args.grouped.split(",")), args.tokens.split(","))
                for shape, rows in cases:
                    found = measure(memory, kind, numbers(shape), int(rows), not args.no_torch)
                    results += [{"build": build, **one} for one in found]
    print(json.dumps({"threads": torch.get_num_threads(), "results": results}))


if __name__ == "__main__":
    main()
