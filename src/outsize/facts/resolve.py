"""From what a user calls a model to its facts: a shipped spec, a local folder, the local cache, or the hub.

Surveying a model costs seconds (transformers builds it on ``meta``), so a survey is kept, under a key made of everything
it depends on: the configuration, the headers and the version of transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path

from outsize.errors import HubUnreachable, ModelNotFound, OutsizeError
from outsize.facts.cache_folder import outsize_cache
from outsize.facts.folder import ModelFolder, open_folder
from outsize.facts.model import ModelSpec, StoredTensor
from outsize.facts.spec_json import SCHEMA, spec_from_json, spec_to_json

SHIPPED = {
    "t5-3b": "t5-3b",
    "google-t5/t5-3b": "t5-3b",
    "eleutherai/gpt-j-6b": "gpt-j-6b",
    "eleutherai/gpt-neox-20b": "gpt-neox-20b",
    "facebook/opt-30b": "opt-30b",
    "facebook/opt-66b": "opt-66b",
    "bigscience/bloom": "bloom",
}
CHUNK = 1 << 22  # bytes compared at a time


def resolve_spec(model: str, revision: str | None = None) -> ModelSpec:
    """The spec of a shipped id, a local folder, a cached model or a model on the hub (headers only), in this order.

    Raises ModelNotFound, HubUnreachable, DamagedModel, UntrustedModel or UnsupportedModel.
    """
    if revision is None and not Path(model).is_dir() and (shipped := shipped_spec(model)) is not None:
        return shipped
    folder = find_folder(model, revision)
    if folder is None:
        from outsize.facts.hub import remote_model

        folder = remote_model(model, revision)
    return folder_spec(folder)


def shipped_spec(model: str) -> ModelSpec | None:
    """The spec that comes with the package, without torch and network; upper and lower case mean the same."""
    name = SHIPPED.get(model.lower())
    if name is None:
        return None
    return spec_from_json((resources.files("outsize.facts") / "models" / f"{name}.json").read_text())


def find_folder(model: str, revision: str | None = None, *, whole: bool = False) -> ModelFolder | None:
    """The local folder or the cached snapshot of a model, or None if there is neither.

    ``whole``: a cached snapshot counts only with all its weights. Raises ModelNotFound for what can only be a path.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"{model}: no such folder")
    from outsize.facts.hub import cached_folder

    cached = cached_folder(model, revision, whole=whole)
    return None if cached is None else open_folder(cached)


def fetch_folder(model: str, revision: str | None = None) -> ModelFolder:
    """A local folder with all weights: found, or downloaded. Raises as ``resolve_spec``, and DoesNotFit for a full disk."""
    folder = find_folder(model, revision, whole=True)
    if folder is None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
            raise HubUnreachable(f"{model}: not in the local cache, and HF_HUB_OFFLINE is set", remedy="unset it")
        from outsize.facts.download import download

        folder = open_folder(download(model, revision))
    if folder.format == "none":
        raise ModelNotFound(f"{folder.origin}: has a configuration but no weights", remedy="safetensors or .bin files")
    return folder


def folder_spec(folder: ModelFolder, auto_class: str | None = None) -> ModelSpec:
    """The spec of a folder's model, surveyed once and then kept. Raises DamagedModel or UnsupportedModel."""
    kept = outsize_cache(os.environ) / "specs" / f"{_key(folder, auto_class)}.json"
    try:
        return spec_from_json(kept.read_text())
    except (OSError, OutsizeError):
        pass  # not surveyed yet, or by another version
    from outsize.facts import architecture

    config = architecture.read_config(folder.config)
    cls = architecture.model_class(config, auto_class)
    tensors = folder.tensors or architecture.config_tensors(config, cls)
    spec = architecture.survey(architecture.rehearse(config, cls, tensors, same_bytes(folder)), folder.origin)
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
