"""The compiled kernels: where they are, which builds they have, and which one this processor gets."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401  loads the OpenMP whose threads are to be shared

from outsize.errors import OutsizeError, UsageError
from outsize.kernels.cpu.build import HERE, file_name

VARIABLE = "OUTSIZE_KERNELS"  # auto, torch or the name of a build
LIBRARY = "OUTSIZE_KERNELS_LIBRARY"  # another file than the one beside this
BUILDS = ("baseline", "avx2", "avx512", "vnni", "bf16")  # in the library's order; each is faster than those before it
ABI = 6
REBUILD = "python -m outsize.kernels.cpu.build"

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
BF12 = (LONG, LONG, POINTER, POINTER, POINTER, POINTER)
WEIGHT = (POINTER, INT, LONG, LONG, INT, POINTER, INT, POINTER, INT)
SIGNATURES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "outsize_abi": ((), INT),
    "outsize_built": ((), ctypes.c_uint),
    "outsize_runnable": ((), ctypes.c_uint),
    "outsize_multiplies_tiles": ((), INT),
    "outsize_use_threads": ((POINTER, POINTER, POINTER), None),
    "outsize_plain": ((INT, INT, LONG, LONG, LONG, POINTER, INT, POINTER, INT, POINTER, POINTER), INT),
    "outsize_packed": ((INT, INT, LONG, LONG, LONG, POINTER, INT, *WEIGHT, POINTER, POINTER), INT),
    "outsize_grouped": ((INT, INT, LONG, POINTER, POINTER, INT, POINTER, LONG), INT),
    "outsize_bf12_encode": ((INT, INT, POINTER, LONG, LONG, *BF12), LONG),
    "outsize_bf12_expand": ((INT, INT, LONG, LONG, POINTER, *BF12), None),
    "outsize_bf12_linear": ((INT, INT, LONG, POINTER, INT, *BF12, POINTER, POINTER), INT),
    "outsize_read": ((INT, POINTER, LONG), ctypes.c_uint64),
    "outsize_norm": ((INT, INT, LONG, LONG, POINTER, POINTER, POINTER, INT, ctypes.c_float, INT), None),
    "outsize_dequantise": ((INT, INT, LONG, LONG, LONG, *WEIGHT, POINTER, INT), None),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A library that was loaded: its file, the builds in it that this processor can run, and its functions."""

    path: Path
    builds: tuple[str, ...]
    threads: bool  # whether it shares torch's threads, or works with one alone
    functions: Any


@dataclass(frozen=True, slots=True)
class Kernels:
    """One build of a library: its name, the number that the functions know it by, and the functions."""

    name: str
    index: int
    tiles: bool  # whether torch's bf16 matmul has the processor's tiles (AMX)
    plain: Any
    packed: Any
    grouped: Any
    dequantise: Any
    bf12_encode: Any
    bf12_expand: Any
    bf12_linear: Any
    norm: Any
    read: Any


class NoLibrary(OutsizeError):
    """There are no compiled kernels here, and why: the torch reference implementations compute instead, if they may."""


def kernels() -> Kernels | None:
    """The build in use, as OUTSIZE_KERNELS says at this moment; None: the torch reference implementations.

    Raises UsageError for a name that means nothing or that this processor or library lacks.
    """
    return _chosen(os.environ.get(VARIABLE, "auto"))


@cache
def _chosen(name: str) -> Kernels | None:
    if name == "torch":
        return None
    if name not in ("auto", *BUILDS):
        raise UsageError(f"{VARIABLE}={name} is not known", remedy=", ".join(("auto", "torch", *BUILDS)))
    try:
        library = load()
    except NoLibrary as error:
        if name == "auto":
            return None
        raise UsageError(f"{VARIABLE}={name}, but {error.what}", remedy=error.remedy) from error
    if name == "auto":
        name = library.builds[-1]
    if name not in library.builds:
        raise UsageError(f"{VARIABLE}={name} cannot run here", have=", ".join(library.builds))
    has = library.functions
    return Kernels(
        name, BUILDS.index(name), bool(has.outsize_multiplies_tiles()),
        has.outsize_plain, has.outsize_packed, has.outsize_grouped, has.outsize_dequantise,
        has.outsize_bf12_encode, has.outsize_bf12_expand, has.outsize_bf12_linear, has.outsize_norm, has.outsize_read,
    )  # fmt: skip


@cache
def load() -> Library:
    """Load the library beside this file, or the one that OUTSIZE_KERNELS_LIBRARY names, once.

    Raises NoLibrary; UsageError where one was named that is not there.
    """
    path = os.environ.get(LIBRARY)
    file = Path(path) if path else HERE / file_name()
    if not file.is_file():
        if path:
            raise UsageError(f"{LIBRARY}={path}: there is no such file", remedy=f"unset {LIBRARY}")
        raise NoLibrary("the kernels were not compiled", remedy=REBUILD)
    try:
        functions = ctypes.CDLL(str(file))
        for name, (arguments, result) in SIGNATURES.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = arguments, result
            if name == "outsize_abi" and function() != ABI:
                raise NoLibrary(f"{file.name} belongs to another version of outsize", remedy=REBUILD)
    except (OSError, AttributeError) as error:
        raise NoLibrary(f"{file.name} cannot be loaded: {error}", remedy=REBUILD) from error
    can = functions.outsize_built() & functions.outsize_runnable()
    builds = tuple(name for index, name in enumerate(BUILDS) if can >> index & 1)
    return Library(file, builds, _share_threads(functions), functions)


def _share_threads(functions: Any) -> bool:
    """Hand the library the OpenMP that torch uses, whatever its file is called: there is to be one team of threads.

    torch loads it for all to see. Its names are those that code compiled by gcc calls; LLVM's and Intel's have them.
    """
    process = ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if not all(hasattr(process, name) for name in names):
        return False
    functions.outsize_use_threads(*(ctypes.cast(getattr(process, name), POINTER) for name in names))
    return True


def forget() -> None:
    """Look again: for tests, and after compiling."""
    load.cache_clear()
    _chosen.cache_clear()


def describe() -> tuple[str, str]:
    """For a person: which kernels are used, and what would give better ones (or nothing).

    Raises UsageError as ``kernels`` does.
    """
    chosen = kernels()
    if os.environ.get(VARIABLE) == "torch":
        return "torch", f"unset {VARIABLE}"
    try:
        library = load()
    except NoLibrary as error:
        return f"torch: {error.what}", error.remedy
    assert chosen is not None  # there is a library, and torch was not asked for
    others = [name for name in library.builds if name != chosen.name]
    shared = "" if library.threads else "; on one thread: this torch shows no OpenMP"
    return f"{chosen.name} (of {', '.join([*others, chosen.name])}){shared}", ""
