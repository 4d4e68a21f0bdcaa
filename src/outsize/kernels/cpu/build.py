"""Compile the kernels: ``python -m outsize.kernels.cpu.build`` puts them beside this file, where the loader looks."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
MODULE = "_kernels"
# One ordinary compile: each source file names the instruction set that it is for. Products are not fused with sums, so
# that all builds round alike; where that is wanted, it is written.
FLAGS = ("-std=c11", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off")
SANITIZE = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
    "-DINLINE=static __attribute__((unused))",
)  # fmt: skip


def sources() -> list[Path]:
    """The source files, one per build and one that Python calls."""
    return sorted((HERE / "c").glob("*.c"))


def headers() -> list[Path]:
    """What the source files include."""
    return sorted((HERE / "c").glob("*.h"))


def file_name() -> str:
    """The library's name: that of an extension module, for setuptools builds it as one."""
    return MODULE + str(sysconfig.get_config_var("EXT_SUFFIX"))


def compile_library(to: Path, extra: Sequence[str] = ()) -> None:
    """Compile the library to the file ``to``, a process per core. ``CC`` and ``CFLAGS`` of the environment count.

    Raises OSError where there is no compiler, subprocess.CalledProcessError where it fails.
    """
    compiler = shlex.split(environ.get("CC") or "cc")
    flags = [*FLAGS, "-fPIC", *shlex.split(environ.get("CFLAGS", "")), *extra]
    with TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = [str(Path(folder) / source.with_suffix(".o").name) for source in sources()]

        def compile_one(source: Path, made: str) -> None:
            subprocess.run([*compiler, *flags, "-c", str(source), "-o", made], check=True)

        list(pool.map(compile_one, sources(), objects))
        linked = Path(folder) / to.name
        subprocess.run([*compiler, "-shared", *extra, *objects, "-o", str(linked)], check=True)
        to.write_bytes(linked.read_bytes())


def main() -> int:
    """Compile beside this file, or to ``--out``; 1 where that fails."""
    parser = argparse.ArgumentParser(prog="python -m outsize.kernels.cpu.build", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE", default=HERE / file_name())
    parser.add_argument(
        "--sanitize", action="store_true", help="with gcc's or clang's address and undefined sanitizers"
    )
    args = parser.parse_args()
    try:
        compile_library(args.out, SANITIZE if args.sanitize else ())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"the kernels were not compiled: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
