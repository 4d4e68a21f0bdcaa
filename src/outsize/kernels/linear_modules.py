"""``nn.Linear`` straight to the kernels for a few rows: a dozen calls of Python less in each of a token's products.

After a hundred megabytes of weights no cache holds the interpreter any more, and each of its calls costs several times
what it costs in a loop (``docs/log.md``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from outsize.errors import OutsizeError
from outsize.kernels.bf12 import Bf12Weight
from outsize.kernels.cpu.library import Kernels, kernels
from outsize.kernels.cpu.linear import MOST_ROWS, TYPES
from outsize.kernels.replaced_forwards import ReplacedForwards
from outsize.kernels.weights import PackedWeight

Tensor = torch.Tensor


def replace_in(model: nn.Module) -> ReplacedForwards:
    """Lets a model's linear layers call the kernels that are in use now; what is returned restores it.

    It makes a difference for weights that rest packed or in 12 bits, on the CPU, and up to 16 rows. All else goes the
    way that it went, and the numbers are the same to the bit.
    """
    build, replaced = kernels(), ReplacedForwards()
    for module in model.modules():
        if build is not None and type(module) is nn.Linear:
            replaced.replace(module, partial(_forward, module, build))
    return replaced


def _forward(module: nn.Linear, build: Kernels, input: Tensor) -> Tensor:
    parameters: dict[str, Any] = module._parameters
    weight, bias = parameters["weight"], parameters["bias"]
    kind = type(weight)
    if (kind is Bf12Weight or kind is PackedWeight) and weight.described and type(input) is Tensor:
        out, inputs = weight.described[:2]
        code, width = TYPES.get(input.dtype), input.shape[-1] if input.dim() else 0
        rows = input.numel() // width if width else 0
        few = 0 < rows <= MOST_ROWS and width == inputs and input.is_cpu and input.is_contiguous()
        fits = bias is None or (type(bias) is nn.Parameter and bias.dtype == input.dtype and bias.shape == (out,))
        if few and fits and code is not None and not torch.is_grad_enabled():
            return _multiply(build, input, rows, code, weight, bias)
    return nn.Linear.forward(module, input)


def _multiply(build: Kernels, x: Tensor, rows: int, code: int, weight: Any, bias: Tensor | None) -> Tensor:
    """As ``kernels.cpu.linear`` does for what was looked at already."""
    described = weight.described
    out = described[0]
    y = x.new_empty((*x.shape[:-1], out))
    first, threads = (None if bias is None else bias.data_ptr()), torch.get_num_threads()
    if type(weight) is Bf12Weight:
        status = build.bf12_linear(build.index, threads, rows, x.data_ptr(), code, *described, first, y.data_ptr())
    elif described[2]:
        inputs = described[1]
        status = build.packed(
            build.index, threads, rows, inputs, out, x.data_ptr(), code, *described[2], first, y.data_ptr()
        )
    else:
        return torch.nn.functional.linear(x, weight, bias)  # what the kernels do not know
    if status:
        raise OutsizeError("no memory for a row of activations", need=f"{rows} x {described[1]}")
    return y
