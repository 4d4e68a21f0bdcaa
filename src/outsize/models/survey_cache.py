"""Surveys of models in folders, kept.

Surveying a model costs seconds (transformers builds it on ``meta``), so a survey is kept, under a key made of
everything it depends on: the configuration, the headers and the version of transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from outsize.errors import OutsizeError
from outsize.models.files.folder import ModelFolder
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.spec_json import SCHEMA, spec_from_json, spec_to_json
from outsize.paths import outsize_cache

CHUNK = 1 << 22  # bytes compared at a time


def folder_spec(folder: ModelFolder, auto_class: str | None = None) -> ModelSpec:
    """The spec of a folder's model, surveyed once and then kept. Raises DamagedModel or UnsupportedModel."""
    kept = outsize_cache(os.environ) / "specs" / f"{_key(folder, auto_class)}.json"
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
        if (a.file, a.offset, a.nbytes) == (b.file, b.offset, b.nbytes) or self._path is None:
            return True
        if a.nbytes != b.nbytes or a.dtype != b.dtype:
            return False
        with (self._path / a.file).open("rb") as left, (self._path / b.file).open("rb") as right:
            left.seek(a.offset)
            right.seek(b.offset)
            for start in range(0, a.nbytes, CHUNK):
                size = min(CHUNK, a.nbytes - start)
                if left.read(size) != right.read(size):
                    return False
        return True


def _key(folder: ModelFolder, auto_class: str | None) -> str:
    facts: Mapping[str, object] = {
        "schema": SCHEMA,
        "transformers": metadata.version("transformers"),
        "origin": folder.origin,
        "config": folder.config,
        "auto_class": auto_class,
        "tensors": [(t.name, t.dtype, t.shape, t.file, t.offset) for t in folder.tensors],
        "files": [(f.name, f.size, _changed(folder, f.name)) for f in folder.files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _changed(folder: ModelFolder, name: str) -> int:
    """When a file last changed: whether two tensors are equal, and so tied, is part of a survey."""
    return (folder.path / name).stat().st_mtime_ns if folder.path else 0


def _keep(path: Path, text: str) -> None:
    """Written under a temporary name and renamed; a cache that cannot be written is done without."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
