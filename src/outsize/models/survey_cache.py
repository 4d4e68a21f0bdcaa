"""Surveys of models in folders, kept.

Surveying a model costs seconds (transformers builds it on ``meta``), so a survey is kept, under a key made of
everything it depends on: the configuration, the headers and the version of transformers.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from math import prod
from pathlib import Path

from outsize.errors import OutsizeError
from outsize.files import write_whole
from outsize.models.dtypes import dtype_bytes
from outsize.models.expert_uses import known_routing
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.spec_json import SCHEMA, spec_from_json, spec_to_json
from outsize.models.strided import elements
from outsize.paths import outsize_cache

CHUNK = 1 << 22  # bytes compared at a time
MOST_REPEATED = 16  # times the bytes of its file that a strided tensor may have to be compared


def folder_spec(folder: ModelFolder, auto_class: str | None = None) -> ModelSpec:
    """The spec of a folder's model, surveyed once and then kept, with the uses of its experts in earlier runs.

    Raises DamagedModel or UnsupportedModel.
    """
    key = spec_key(folder, auto_class)
    spec = _surveyed(folder, auto_class, outsize_cache(os.environ) / "specs" / f"{key}.json")
    return replace(spec, uses=known_routing(key)) if any(module.experts for module in spec.modules) else spec


def _surveyed(folder: ModelFolder, auto_class: str | None, kept: Path) -> ModelSpec:
    try:
        return spec_from_json(kept.read_text())
    except (OSError, OutsizeError):
        pass  # not surveyed yet, or by another version
    from outsize.models import tracing

    spec = tracing.survey(tracing.skeleton_of(folder, same_bytes(folder), auto_class), folder.origin)
    _keep(kept, spec_to_json(spec))
    return spec


class same_bytes:  # noqa: N801  a function with a folder bound to it
    """Whether two stored tensors of a folder hold equal bytes.

    Where the bytes cannot be read (the hub, a configuration alone) the configuration's word on tying is taken.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._path = folder.path if folder.format != "none" else None

    def __call__(self, a: StoredTensor, b: StoredTensor) -> bool:
        """Compares in pieces and stops at the first difference."""
        if self._path is None or _place(a) == _place(b):
            return True
        if a.dtype != b.dtype:
            return False
        if a.strides is not None or b.strides is not None:
            return a.shape == b.shape and _equal_elements(self._path, a, b)
        if a.nbytes != b.nbytes:
            return False
        with (self._path / a.file).open("rb") as left, (self._path / b.file).open("rb") as right:
            left.seek(a.offset)
            right.seek(b.offset)
            for start in range(0, a.nbytes, CHUNK):
                size = min(CHUNK, a.nbytes - start)
                if left.read(size) != right.read(size):
                    return False
        return True


def _place(tensor: StoredTensor) -> tuple[object, ...]:
    """Equal for tensors that are the same elements of the same file."""
    return tensor.file, tensor.offset, tensor.nbytes, tensor.shape, tensor.strides


def _equal_elements(folder: Path, a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors hold the same elements, of which at least one is strided: run by run, from mapped files.

    Strides can make endless tensors of a few bytes. Those are not compared: two weights that are equal are right, too.
    """
    left, right = _mapped(folder / a.file), _mapped(folder / b.file)
    if prod(a.shape) * dtype_bytes(a.dtype) > MOST_REPEATED * (len(left) + len(right)):
        return False
    return all(one == other for one, other in zip(_rows(left, a), _rows(right, b), strict=True))


def _rows(file: memoryview, tensor: StoredTensor) -> Iterator[bytes]:
    """The elements, one run along the last dimension after the other, of contiguous tensors too."""
    if tensor.strides is None:
        step = tensor.shape[-1] * dtype_bytes(tensor.dtype)
        starts = range(tensor.offset, tensor.offset + tensor.nbytes, step)
        yield from (bytes(file[start : start + step]) for start in starts)
    else:
        yield from map(bytes, elements(file[tensor.offset : tensor.offset + tensor.nbytes], tensor))


def _mapped(path: Path) -> memoryview:
    """A file's bytes, not read into memory: a transposed tensor is read across. Unmapped with its last view."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def spec_key(folder: ModelFolder, auto_class: str | None) -> str:
    """What a folder's survey, and what was learnt of its experts, are kept under."""
    facts: Mapping[str, object] = {
        "schema": SCHEMA,
        "transformers": metadata.version("transformers"),
        "origin": folder.origin,
        "config": folder.config,
        "auto_class": auto_class,
        "tensors": [(t.name, t.dtype, t.shape, t.file, t.offset, t.strides) for t in folder.tensors],
        "files": [(f.name, f.size, _changed(folder, f.name)) for f in folder.files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _changed(folder: ModelFolder, name: str) -> int:
    """When a file last changed: whether two tensors are equal, and so tied, is part of a survey."""
    return (folder.path / name).stat().st_mtime_ns if folder.path else 0


def _keep(path: Path, text: str) -> None:
    """A cache that cannot be written is done without."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
