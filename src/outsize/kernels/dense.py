"""A plain weight whose ``linear`` the kernels compute."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from outsize.kernels.dispatch import linear


class KernelWeight(torch.Tensor):
    """A bf16, fp16 or fp32 weight [out, in], seen through a subclass (``weight.as_subclass(KernelWeight)``, no copy).

    ``functional.linear`` goes to the kernels; every other operation sees, and gives, plain tensors.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return linear(*args, **_as_linear_names(kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _as_linear_names(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """torch calls the first argument ``input``."""
    return {"x" if name == "input" else name: value for name, value in (kwargs or {}).items()}
