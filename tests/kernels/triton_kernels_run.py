"""The Triton kernels in Triton's interpreter, against the reference: the largest error of every case, as JSON.

A program of its own, because the interpreter is chosen when the kernels are imported.
"""

from __future__ import annotations

import json
import sys
from itertools import product
from typing import Any

import torch

from outsize.kernels import reference
from outsize.kernels.cuda import linear as cuda
from outsize.kernels.weights import PackedWeight
from outsize.models.formats import Packing

ROWS = {(7, 5): (1, 5), (8, 0): (7, 20, 65)}


def weight(out: int, inputs: int, packing: Packing, dtype: torch.dtype) -> PackedWeight:
    if packing.words:
        values = torch.randint(-(2**31), 2**31 - 1, (out, -(-inputs * packing.bits // 32)), dtype=torch.int32)
    else:
        values = torch.randint(-128, 127, (out, inputs), dtype=torch.int8)
    scale = torch.rand(out, packing.groups(inputs)) * 0.01 + 0.001
    return PackedWeight(values, scale.to(dtype), None, packing, (out, inputs))


def error(x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None) -> float:
    """Of the kernels' product, as a share of its largest number."""
    wide = PackedWeight(packed.values, packed.scale.float(), None, packed.packing, tuple(packed.shape))
    want = reference.linear(x.float(), wide, None if bias is None else bias.float())
    assert cuda.takes(x, packed)
    got = cuda.linear(x, packed, bias).float()
    return float((got - want).abs().max() / want.abs().max())


def main() -> int:
    torch.manual_seed(0)
    wanted: Any = json.loads(sys.argv[1])
    errors = []
    for (bits, words), name, (out, inputs, group) in product(wanted["formats"], wanted["types"], wanted["shapes"]):
        dtype = getattr(torch, name)
        packed = weight(out, inputs, Packing(bits, group, words=words, scale=name), dtype)
        for capability, numbers in ROWS.items():
            cuda.capability = lambda device, known=capability: known  # type: ignore[assignment]
            for rows in numbers:
                bias = torch.randn(out).to(dtype) if rows % 2 else None
                errors.append((name, bits, rows, error(torch.randn(rows, inputs).to(dtype), packed, bias)))
    print(json.dumps(errors))
    return 0


if __name__ == "__main__":
    sys.exit(main())
