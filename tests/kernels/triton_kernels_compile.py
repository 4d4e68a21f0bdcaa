"""Compiles the Triton kernels for cards that need not be here, and prints what ptxas says of registers as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from outsize.kernels.cuda import linear as cuda
from outsize.kernels.cuda import triton_kernels
from outsize.models.formats import Packing

SHAPE = (4096, 4096)


def compiled(name: str, constants: dict[str, Any], floats: str, capability: int, warps: int, stages: int) -> str:
    """The PTX of a kernel for 4096 x 4096, all pointers and sizes being multiples of 16."""
    kernel = getattr(triton_kernels, name)
    pointers = {"words": "*i32", "planes": f"*{'fp32' if name == 'gemv_kernel' else floats}", "partial": "*fp32"}
    pointers |= dict.fromkeys(("x", "scale", "bias", "y", "out"), f"*{floats}")
    names = [argument for argument in kernel.arg_names if argument not in constants]
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in kernel.arg_names}
    aligned = [n for n in names if n in pointers or n in ("N", "K", "W", "group_words", "group")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
        attrs={(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": warps, "num_stages": stages}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return str(built.asm["ptx"])


def spilled(ptx: str, capability: int) -> int:
    """Bytes of registers that ptxas stores to memory because they are too many."""
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(ptx)
        file.flush()
        target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
        assert target
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", file.name + ".o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        Path(file.name + ".o").unlink()
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr))


def cases(capability: int) -> list[tuple[str, dict[str, Any], int, int]]:
    """Each kernel as ``launch`` would have it, for few and many rows."""
    found = []
    for bits, rows in ((4, 1), (4, 4), (4, 16), (8, 64), (4, 512)):
        packing = Packing(bits, 128, words=True, scale="float16")
        how = cuda.launch(rows, SHAPE, packing, 2, divmod(capability, 10))
        constants: dict[str, Any] = {"BITS": bits, "SIGNED": False}
        if how.kernel == "expand":
            constants |= {"BLOCK_K": how.blocks[0]}
        elif how.kernel == "gemv":
            constants |= {"M": rows, "HAS_BIAS": True, "BLOCK_N": how.blocks[0], "BLOCK_W": how.blocks[1]}
        else:
            block_m, block_n, block_w = how.blocks
            constants |= {"HAS_BIAS": False, "SCALED": how.scaled, "PARTIAL": how.grid[2] > 1, "WIDE": False}
            constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_W": block_w}
        found.append((f"{how.kernel}_kernel", constants, how.warps, how.stages))
    return found


def main() -> int:
    capability = int(sys.argv[1])
    results = []
    for name, constants, warps, stages in cases(capability):
        ptx = compiled(name, constants, "fp16", capability, warps, stages)
        results.append((name, constants["BITS"], spilled(ptx, capability), ptx.count("mma")))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
