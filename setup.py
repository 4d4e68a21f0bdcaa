"""The kernels, compiled where there is a compiler; all else stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "src"))

from outsize.kernels.cpu.build import HERE, MODULE, compile_library, headers, sources


def here(path: Path) -> str:
    """Relative, as setuptools wants it."""
    return str(path.relative_to(HERE.parents[3]))


class BuildKernels(build_ext):
    """Compiles with a process per core, as ``python -m outsize.kernels.cpu.build`` does."""

    def build_extension(self, ext: Extension) -> None:
        """Without a compiler plain torch computes, and ``outsize doctor`` says so."""
        to = Path(self.get_ext_fullpath(ext.name))
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            compile_library(to)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the kernels are not compiled: {error}")


setup(
    cmdclass={"build_ext": BuildKernels},
    ext_modules=[
        Extension(
            f"outsize.kernels.cpu.{MODULE}",
            sources=[here(path) for path in sources()],
            depends=[here(path) for path in headers()],
            optional=True,
        )
    ],
)
