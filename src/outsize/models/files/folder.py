"""A model's folder: its configuration, and where every stored tensor lies.

Names in an index file come from strangers. They must be plain names of files in the folder; nothing else is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from outsize.errors import DamagedModel, ModelNotFound, UntrustedModel
from outsize.models.files import safetensors, torch_zip
from outsize.models.files.byte_source import ByteSource, LocalFile
from outsize.models.files.parse_json import MOST_BYTES, parse_json_object
from outsize.models.spec import StoredTensor

Format = Literal["safetensors", "torch", "none"]
CONFIG = "config.json"
# In the order in which transformers looks for them.
WEIGHTS: tuple[tuple[str, Format], ...] = (
    ("model.safetensors", "safetensors"),
    ("model.safetensors.index.json", "safetensors"),
    ("pytorch_model.bin", "torch"),
    ("pytorch_model.bin.index.json", "torch"),
)
SUFFIX: Mapping[Format, str] = {"safetensors": ".safetensors", "torch": ".bin"}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that holds weights."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a folder, here or on the hub, says about its model.

    ``path`` is None for a model on the hub; then the tensors' bytes cannot be read, and for ``.bin`` files their
    offsets are where PyTorch's own writer puts them. ``tensors`` and ``files`` are empty for a configuration alone.
    """

    origin: str  # what the user would call it: the path, or the hub id
    path: Path | None
    config: Mapping[str, Any]
    format: Format
    tensors: tuple[StoredTensor, ...]
    files: tuple[ModelFile, ...]


class Files(Protocol):
    """The files of one model, wherever they are."""

    @property
    def origin(self) -> str:
        """The folder's or repository's name, for messages."""

    @property
    def path(self) -> Path | None:
        """The local folder, if there is one."""

    def has(self, name: str) -> bool:
        """Whether there is an entry of that plain name."""

    def open(self, name: str) -> AbstractContextManager[ByteSource]:
        """The file of that plain name, for reading. Raises OutsizeError."""


def open_folder(path: Path | str) -> ModelFolder:
    """Read the configuration and all headers of a local folder.

    Raises ModelNotFound (no folder, no config.json), DamagedModel, UntrustedModel or UnsupportedModel.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such folder")
    return read_model(LocalFiles(folder))


def read_model(files: Files) -> ModelFolder:
    """The same for any set of files: the seam that local folders and the hub share."""
    if not files.has(CONFIG):
        raise ModelNotFound(f"{files.origin}: has no {CONFIG}", remedy="a folder or repository in transformers' format")
    config = parse_json_object(_whole(files, CONFIG), f"{files.origin}: {CONFIG}", unique_keys=False)
    found = weights_file(files)
    if found is None:
        return ModelFolder(files.origin, files.path, config, "none", (), ())
    name, kind = found
    placed = read_index(files, name, kind) if name.endswith(".json") else {}
    tensors, sizes = _headers(files, shards_of(placed) or (name,), kind)
    _check_index(tensors, placed, name)
    return ModelFolder(files.origin, files.path, config, kind, tensors, sizes)


def weights_file(files: Files) -> tuple[str, Format] | None:
    """The file, or the index, that transformers would take the weights from."""
    return next(((name, kind) for name, kind in WEIGHTS if files.has(name)), None)


def check_name(name: object, suffix: str, index: str) -> str:
    """A name from an index, if it is a plain file name with that suffix. Raises UntrustedModel."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in "/\\:" or not c.isprintable() for c in name):
        raise UntrustedModel(f"{index}: names {name!r}, which is not a plain file name in the model's folder")
    if not name.endswith(suffix):
        raise UntrustedModel(f"{index}: names {name!r}", need=f"a {suffix} file")
    return name


def read_index(files: Files, index: str, kind: Format) -> dict[str, str]:
    """The shard of every tensor, as an index file says. Raises DamagedModel, or UntrustedModel for a shard's name."""
    placed = parse_json_object(_whole(files, index), index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise DamagedModel(f"{index}: has no weight_map")
    return {tensor: check_name(name, SUFFIX[kind], index) for tensor, name in placed.items()}


def shards_of(placed: Mapping[str, str]) -> tuple[str, ...]:
    """The shards that an index names, each once, in order."""
    return tuple(sorted(set(placed.values())))


def _headers(
    files: Files, shards: tuple[str, ...], kind: Format
) -> tuple[tuple[StoredTensor, ...], tuple[ModelFile, ...]]:
    """All tensors of all shards. Raises DamagedModel for a missing shard and for a tensor that two shards hold."""
    missing = [name for name in shards if not files.has(name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedModel(f"{files.origin}: lacks the shard {missing[0]}{more}", remedy="download the model again")
    read = safetensors.read_header if kind == "safetensors" else torch_zip.read_header
    tensors: dict[str, StoredTensor] = {}
    sizes = []
    for shard in shards:
        with files.open(shard) as source:
            sizes.append(ModelFile(shard, source.size))
            for tensor in read(source):
                if tensor.name in tensors:
                    other = tensors[tensor.name].file
                    raise DamagedModel(f"{files.origin}: tensor {tensor.name!r} is in both {other} and {shard}")
                tensors[tensor.name] = tensor
    return tuple(tensors.values()), tuple(sizes)


def _check_index(tensors: tuple[StoredTensor, ...], placed: Mapping[str, str], index: str) -> None:
    """Every tensor that the index names is in the shard that it names."""
    found = {tensor.name: tensor.file for tensor in tensors}
    for name, shard in placed.items():
        if found.get(name) != shard:
            raise DamagedModel(f"{index}: tensor {name!r} is not in {shard}", have=found.get(name, "no such tensor"))


def _whole(files: Files, name: str) -> bytes:
    """All bytes of a small file."""
    with files.open(name) as source:
        if source.size > MOST_BYTES:
            raise DamagedModel(f"{name} is too large", need=f"at most {MOST_BYTES} bytes", have=f"{source.size} bytes")
        return source.read(0, source.size)


class LocalFiles:
    """The Files of a local folder."""

    def __init__(self, folder: Path) -> None:
        self.origin = str(folder)
        self.path: Path | None = folder
        self._folder = folder

    def has(self, name: str) -> bool:
        """Whether there is an entry of that name, even a link that leads nowhere."""
        return os.path.lexists(self._folder / name)

    def open(self, name: str) -> LocalFile:
        """The file of that name. Raises DamagedModel, UntrustedModel if it is a link that leaves the folder."""
        return LocalFile(inside(self._folder, name), name)


def inside(folder: Path, name: str) -> Path:
    """The real path of a file in a model's folder, links followed.

    A link may lead elsewhere in the folder, or, in the Hugging Face cache, from ``models--ID/snapshots/REVISION`` to
    ``models--ID/blobs`` or on to the cache's own ``blobs``. Raises UntrustedModel for any other, DamagedModel for one
    that leads nowhere.
    """
    try:
        root = folder.resolve(strict=True)
        target = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DamagedModel(f"{folder / name}: cannot be opened", remedy="download the model again") from error
    allowed = [root]
    repository = root.parent.parent
    if root.parent.name == "snapshots" and repository.name.startswith("models--"):
        allowed += [repository / "blobs", repository.parent / "blobs"]
    if not any(target.is_relative_to(place) for place in allowed):
        raise UntrustedModel(f"{folder / name}: is a link that leaves the model's folder", have=str(target))
    return target
