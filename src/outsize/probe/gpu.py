"""One GPU's figures: its memory, matmuls of one row and of many, and its link to the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from outsize.errors import DoesNotFit
from outsize.machine.machine import Device
from outsize.machine.profile import GpuFigures
from outsize.probe.processor import median_rate
from outsize.sizes import format_size

MOST_BYTES = 2 << 30  # of the GPU's memory: many times its cache
LEAST_BYTES = 256 << 20
PINNED_BYTES = 256 << 20
WIDTH = 4096
LARGE = 8192  # of the matmuls that count operations
REPEAT = 8  # runs between two looks at the clock: a launch takes microseconds


def gpu_figures(device: torch.device, gpu: Device) -> GpuFigures:
    """Measures a CUDA device. Raises DoesNotFit where it has too little free, RuntimeError where CUDA fails."""
    free, _ = torch.cuda.mem_get_info(device)
    nbytes = min(MOST_BYTES, free // 3)
    nbytes -= nbytes % (4 * WIDTH * WIDTH)
    if nbytes < LEAST_BYTES:
        raise DoesNotFit(f"too little of {gpu.name} is free to measure it", need="1 GiB", have=format_size(free))
    try:
        with torch.inference_mode():
            buffer = torch.zeros(nbytes, dtype=torch.uint8, device=device)
            numbers = buffer.view(torch.float32)
            memory = _rate(device, nbytes, numbers.sum)
            matmul, flops = {}, {}
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                name = str(dtype).removeprefix("torch.")
                matmul[name] = _one_row(device, buffer, dtype)
                flops[name] = _many_rows(device, dtype, buffer)
            return GpuFigures(gpu.label, memory, _link(device, buffer), matmul, flops)
    finally:
        torch.cuda.empty_cache()


def _rate(device: torch.device, work: float, run: Callable[[], object]) -> float:
    def runs() -> None:
        for _ in range(REPEAT):
            run()
        torch.cuda.synchronize(device)

    return median_rate(REPEAT * work, runs, 1.0)


def _one_row(device: torch.device, buffer: torch.Tensor, dtype: torch.dtype) -> float:
    """Bytes of weights per second, over more matrices than the cache holds."""
    numbers = buffer.view(dtype)
    weights = numbers[: numbers.numel() // WIDTH**2 * WIDTH**2].view(-1, WIDTH, WIDTH)
    row = torch.ones(1, WIDTH, dtype=dtype, device=device)

    def one_pass() -> None:
        for weight in weights:
            functional.linear(row, weight)

    return _rate(device, weights.nbytes, one_pass)


def _many_rows(device: torch.device, dtype: torch.dtype, buffer: torch.Tensor) -> float:
    """Operations per second. Random numbers: zeros draw less power, and so run faster than weights do."""
    side = LARGE if buffer.nbytes >= 4 * 4 * LARGE**2 else WIDTH
    weight = torch.randn(side, side, dtype=dtype, device=device)
    rows = torch.randn(side, side, dtype=dtype, device=device)
    return _rate(device, 2.0 * side**3, lambda: functional.linear(rows, weight))


def _link(device: torch.device, buffer: torch.Tensor) -> float:
    """Bytes per second from page-locked memory."""
    host = torch.empty(min(PINNED_BYTES, buffer.nbytes), dtype=torch.uint8, pin_memory=True)
    return _rate(device, host.nbytes, lambda: buffer[: host.nbytes].copy_(host, non_blocking=True))
