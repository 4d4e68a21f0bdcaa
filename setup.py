"""The kernels, compiled where there is a compiler; all else stands in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup

sys.path.insert(0, str(Path(__file__).parent / "src"))

from outsize.kernels.cpu.build import FLAGS, HERE, MODULE, headers, sources


def here(path: Path) -> str:
    """Relative, as setuptools wants it."""
    return str(path.relative_to(HERE.parents[3]))


setup(
    ext_modules=[
        Extension(
            f"outsize.kernels.cpu.{MODULE}",
            sources=[here(path) for path in sources()],
            depends=[here(path) for path in headers()],
            extra_compile_args=list(FLAGS),
            optional=True,  # without a compiler the torch twins compute, and `outsize doctor` says so
        )
    ]
)
