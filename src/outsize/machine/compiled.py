"""What this installation has besides Python code: rates and sizes that nobody measured depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "kernels" / "cpu"


def are_kernels_compiled(environ: Mapping[str, str]) -> bool:
    """Whether there is a library of kernels, and it is not turned off. Whether it can be loaded is seen when it is."""
    if environ.get("OUTSIZE_KERNELS") == "torch":
        return False
    return bool(environ.get("OUTSIZE_KERNELS_LIBRARY")) or any(KERNELS.glob("_kernels*.so"))


def is_triton_installed() -> bool:
    """Whether torch and transformers will import Triton: they do so wherever it is, with and without a GPU."""
    return find_spec("triton") is not None
