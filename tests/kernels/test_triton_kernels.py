"""The GPU kernels without a GPU: right in Triton's interpreter, and compiled for each generation of cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from outsize.kernels.cuda import linear as cuda
from outsize.models.formats import Packing

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
MOST = {"float16": 2e-3, "bfloat16": 1.2e-2, "float32": 1e-5}  # results are rounded to the type
FORMATS = [(4, True), (8, True), (8, False)]


def ran(script: str, *arguments: str, **environ: str) -> Any:
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@needs_triton
@pytest.mark.parametrize(
    "name", ["float16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("bfloat16", "float32"))]
)
def test_they_agree_with_the_reference(name: str) -> None:
    shapes = [(17, 200, 128)] + [(9, 192, 32), (9, 160, 160)] * (name == "float16")
    wanted = {"types": [name], "formats": FORMATS, "shapes": shapes}
    errors = ran("triton_kernels_run.py", json.dumps(wanted), TRITON_INTERPRET="1")
    assert len(errors) == len(FORMATS) * len(shapes) * 5
    assert [case for case in errors if case[-1] > MOST[name]] == []


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, pytest.param(86, marks=pytest.mark.slow), 90])
def test_they_compile_without_spilling_registers(capability: int, tmp_path: Path) -> None:
    results = ran("triton_kernels_compile.py", str(capability), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert {name for name, *_ in results} >= {"gemv_kernel", "expand_kernel"}
    assert ("dot_kernel" in {name for name, *_ in results}) == (capability >= 80)
    assert [result for result in results if result[2]] == []
    assert all(mma > 0 for name, _, _, mma in results if name == "dot_kernel")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (12, 0)])
def test_every_number_of_rows_has_a_launch(capability: tuple[int, int]) -> None:
    packing = Packing(4, 128, words=True, scale="float16")
    kernels = [cuda.launch(rows, (5000, 4096), packing, 2, capability) for rows in range(1, 70)]
    assert [how.kernel for how in kernels[::4]][:2] == ["gemv", "gemv" if capability < (8, 0) else "dot"]
    assert {how.kernel for how in kernels[8:64]} == {"dot" if capability >= (8, 0) else "expand"}
    assert kernels[-1].kernel == "expand"
    for rows, how in enumerate(kernels, start=1):
        assert how.bytes_read == 5000 * (512 * 4 + 32 * 2)
        if how.kernel == "dot":
            block_m, block_n, block_w = how.blocks
            assert how.grid[0] * block_n >= 5000
            assert how.grid[1] * block_m >= rows
            assert how.grid[2] * how.tiles * block_w >= 512 > (how.grid[2] - 1) * how.tiles * block_w


def test_few_programs_divide_k() -> None:
    packing = Packing(4, 128, words=True, scale="float16")
    assert cuda.launch(16, (1024, 8192), packing, 2, (8, 0), 132).grid[2] == 8
    assert cuda.launch(16, (65536, 8192), packing, 2, (8, 0), 132).grid[2] == 1
    small = Packing(4, 32, words=True, scale="float16")
    assert cuda.launch(16, (4096, 4096), small, 2, (8, 0)).scaled


@needs_triton
def test_what_they_do_not_multiply_goes_to_plain_torch() -> None:
    assert not cuda.available(torch.device("cpu"))
