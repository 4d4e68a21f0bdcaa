"""The GPU kernels for packed weights: right, and how much of the memory's rate they reach.

    PYTHONPATH=src python3 bench/gpu_kernels.py --out FILE
    PYTHONPATH=src python3 bench/gpu_kernels.py --tune        other tile sizes beside those of the table
    TRITON_INTERPRET=1 PYTHONPATH=src python3 bench/gpu_kernels.py --emulate    the script itself, without a GPU

Weights are taken in turn from copies that together exceed the L2 cache several times, in a CUDA graph, so that launches
cost nothing. GB/s are bytes of weights; the physical limit is what a copy within the device's memory
reads and writes. Results are written as they come; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from outsize.kernels import reference
from outsize.kernels.cuda import linear as cuda
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing

SHAPES = ((4096, 4096), (8192, 8192), (14336, 4096))
ROWS = (1, 2, 4, 8, 16, 64, 512)
COPIES_BYTES = 512 << 20
# Tiles to try: rows of the weight, words, warps; rows of the weight, warps, stages, programs per multiprocessor.
GEMV = [(8, 128, 4), (4, 128, 4), (4, 256, 4), (2, 128, 2)]
DOT = [
    *((16, 2, stages, programs) for stages in (4, 6) for programs in (8.0, 16.0)),
    *((32, warps, stages, programs) for warps in (2, 4) for stages in (3, 5) for programs in (0.0, 4.0, 8.0)),
    *((64, 4, stages, programs) for stages in (3, 4, 5) for programs in (0.0, 2.0, 4.0)),
    *((128, warps, 3, programs) for warps in (4, 8) for programs in (0.0, 2.0)),
]


def make(out: int, inputs: int, bits: int, dtype: torch.dtype, device: str) -> PackedWeight:
    """A weight of random integers with a scale for every 128 inputs."""
    packing = Packing(bits, 128, words=True, scale=str(dtype).removeprefix("torch."))
    words = torch.randint(-(2**31), 2**31 - 1, (out, inputs * bits // 32), dtype=torch.int32, device=device)
    scale = (torch.rand(out, inputs // 128, device=device) * 0.01 + 0.001).to(dtype)
    return PackedWeight(words, scale, None, packing, (out, inputs))


def copied(weight: PackedWeight) -> PackedWeight:
    """The same numbers elsewhere in memory."""
    return PackedWeight(weight.values.clone(), weight.scale.clone(), None, weight.packing, tuple(weight.shape))


def seconds(call: Callable[[int], Any], copies: int, repeats: int = 5) -> float:
    """Median seconds of one call, the copies in turn, in a CUDA graph."""
    for index in range(min(copies, 3)):
        call(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(copies):
            call(index)
    times = []
    for _ in range(repeats + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / copies)
    return statistics.median(times[1:])


def eager_seconds(call: Callable[[int], Any], copies: int) -> float:
    """Seconds of one call without a graph: what launching costs, where that is more."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for index in range(copies):
        call(index)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / copies


def memory_rate() -> float:
    """Bytes per second of the device's memory: what a copy within it reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda index: target.copy_(source), 4)


def error(x: torch.Tensor, weight: PackedWeight, y: torch.Tensor) -> float:
    """The largest difference to the reference in float32, as a share of its largest value."""
    wide = PackedWeight(weight.values, weight.scale.float(), None, weight.packing, tuple(weight.shape))
    want = torch.cat([reference.linear(part, wide) for part in x.float().split(64)])
    return float((y.float() - want).abs().max() / want.abs().max())


def measure(
    out: int, inputs: int, bits: int, rows: int, dtype: torch.dtype, rate: float, *, quick: bool = False
) -> dict[str, Any]:
    """One shape, format and number of rows."""
    x = torch.randn(rows, inputs, device="cuda", dtype=dtype)
    if bits == 16:
        nbytes = out * inputs * 2
        copies = max(COPIES_BYTES // nbytes, 2)
        dense = [torch.randn(out, inputs, device="cuda", dtype=dtype) for _ in range(copies)]
        took = seconds(lambda i: torch.nn.functional.linear(x, dense[i]), copies)
        return {"us": took * 1e6, "gb_s": nbytes / took / 1e9, "share": nbytes / took / rate}
    weight = make(out, inputs, bits, dtype, "cuda")
    nbytes = weight.values.nbytes + weight.scale.nbytes
    copies = max(COPIES_BYTES // nbytes, 2)
    weights = [weight] + [copied(weight) for _ in range(copies - 1)]
    wrong = error(x, weight, cuda.linear(x, weight))
    took = seconds(lambda i: cuda.linear(x, weights[i]), copies)
    if quick:
        return {"us": took * 1e6, "gb_s": nbytes / took / 1e9, "share": nbytes / took / rate, "error": wrong}
    eager = eager_seconds(lambda i: cuda.linear(x, weights[i]), copies)
    return {"us": took * 1e6, "eager_us": eager * 1e6, "gb_s": nbytes / took / 1e9, "share": nbytes / took / rate,
            "error": wrong}  # fmt: skip


def tune(rate: float, keep: Callable[[dict[str, Any]], None], deadline: float) -> None:
    """All tile sizes in question, for 4096 x 4096 and 8192 x 8192."""
    for size, bits, rows in itertools.product((8192, 4096), (4, 8), (1, 16, 64, 8)):
        for tile in DOT:
            if time.monotonic() > deadline:
                return
            cuda.TILES[8, 0] = cuda.Tiles(gemv=(), dot=((64, *tile),))
            row = {"tune": "dot", "size": size, "bits": bits, "rows": rows, "tile": tile}
            keep(attempt(row, size, size, bits, rows, rate, quick=True))
        for tile in GEMV if rows == 1 else ():
            cuda.TILES[8, 0] = cuda.Tiles(gemv=((8, *tile),), dot=())
            row = {"tune": "gemv", "size": size, "bits": bits, "rows": rows, "tile": tile}
            keep(attempt(row, size, size, bits, rows, rate, quick=True))


def attempt(
    row: dict[str, Any], out: int, inputs: int, bits: int, rows: int, rate: float, *, quick: bool = False
) -> dict[str, Any]:
    """A measured row, or why there is none."""
    try:
        return {**row, **measure(out, inputs, bits, rows, torch.float16, rate, quick=quick)}
    except Exception as failure:  # noqa: BLE001  the other cases are still worth having
        return {**row, "failure": f"{type(failure).__name__}: {str(failure)[:300]}"}
    finally:
        torch.cuda.empty_cache()


def emulate() -> int:
    """The kernels in Triton's interpreter, on a tiny shape."""
    for bits in (4, 8):
        weight, x = make(16, 256, bits, torch.float16, "cpu"), torch.randn(3, 256, dtype=torch.float16)
        print(json.dumps({"bits": bits, "error": error(x, weight, cuda.linear(x, weight))}))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    if args.emulate:
        return emulate()
    import triton

    deadline = time.monotonic() + args.seconds
    rate = memory_rate()
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "memory_gb_s": rate / 1e9, "rows": [],
    }  # fmt: skip

    def keep(row: dict[str, Any]) -> None:
        found["rows"].append(row)
        print(" ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), file=sys.stderr)
        if args.out is not None:
            args.out.write_text(json.dumps(found, indent=1))

    if args.tune:
        tune(rate, keep, deadline)
    else:
        for out, inputs in SHAPES:
            for bits in (4, 8, 16):
                for rows in ROWS:
                    if time.monotonic() < deadline:
                        row = {"out": out, "in": inputs, "bits": bits, "rows": rows}
                        keep(attempt(row, out, inputs, bits, rows, rate))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
