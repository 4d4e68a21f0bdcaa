"""CPU matmul kernels and their plain-torch twins."""

from __future__ import annotations

import os
from pathlib import Path


def compiled() -> bool:
    """Whether there are compiled kernels here, and nobody asked for the twins. Loads nothing: plans ask too."""
    if os.environ.get("OUTSIZE_KERNELS") == "torch":
        return False
    elsewhere = os.environ.get("OUTSIZE_KERNELS_LIBRARY")
    return Path(elsewhere).is_file() if elsewhere else any(Path(__file__).parent.glob("_kernels*.so"))
