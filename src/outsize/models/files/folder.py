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

from outsize.errors import DamagedModel, ModelNotFound, UnsupportedModel, UntrustedModel
from outsize.models.files import safetensors, torch_zip
from outsize.models.files.byte_source import ByteSource, LocalFile
from outsize.models.files.parse_json import MOST_BYTES, MOST_CONFIG_BYTES, parse_json_object
from outsize.models.spec import StoredTensor

Format = Literal["safetensors", "torch", "none"]
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
LFS = b"version https://git-lfs"
NO_GGUF = "the original model in transformers' format (safetensors), which outsize converts itself"
CHUNK = 1 << 22  # bytes compared at a time
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
        if files.has(ADAPTER):
            raise _is_adapter(files)
        raise ModelNotFound(f"{files.origin}: has no {CONFIG}", remedy="a folder or repository in transformers' format")
    config = parse_json_object(_whole(files, CONFIG, MOST_CONFIG_BYTES), f"{files.origin}: {CONFIG}", unique_keys=False)
    found = weights_file(files)
    if found is None:
        _refuse_loose_shards(files)
        return ModelFolder(files.origin, files.path, config, "none", (), ())
    name, kind = found
    placed = read_index(files, name, kind) if name.endswith(".json") else {}
    tensors, sizes = _headers(files, shards_of(placed) or (name,), kind)
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
    return {tensor: check_shard(name, SUFFIX[kind], index) for tensor, name in placed.items()}


def check_shard(name: object, suffix: str, index: str) -> str:
    """A shard's name from an index: a plain file name, or one in a folder within. Raises UntrustedModel."""
    parts = name.split("/") if isinstance(name, str) else [name]
    for folder in parts[:-1]:
        check_name(folder, "", index)
    return "/".join([*map(str, parts[:-1]), check_name(parts[-1], suffix, index)])


def shards_of(placed: Mapping[str, str]) -> tuple[str, ...]:
    """The shards that an index names, each once, in order."""
    return tuple(sorted(set(placed.values())))


def _headers(
    files: Files, shards: tuple[str, ...], kind: Format
) -> tuple[tuple[StoredTensor, ...], tuple[ModelFile, ...]]:
    """All tensors of all shards, whatever the index says of them, as transformers reads them.

    Raises DamagedModel for a missing shard and for different tensors of one name.
    """
    missing = [name for name in shards if not files.has(name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedModel(f"{files.origin}: lacks the shard {missing[0]}{more}", remedy="download the model again")
    read = safetensors.read_header if kind == "safetensors" else torch_zip.read_header
    tensors: dict[str, StoredTensor] = {}
    sizes = []
    for shard in shards:
        with files.open(shard) as source:
            _refuse_pointer(source)
            sizes.append(ModelFile(shard, source.size))
            for tensor in read(source):
                if (other := tensors.get(tensor.name)) is not None:
                    _check_same(files, other, tensor)
                tensors[tensor.name] = tensor
    return tuple(tensors.values()), tuple(sizes)


def _is_adapter(files: Files) -> UnsupportedModel:
    about = parse_json_object(_whole(files, ADAPTER, MOST_CONFIG_BYTES), f"{files.origin}: {ADAPTER}")
    base = about.get("base_model_name_or_path")
    return UnsupportedModel(
        f"{files.origin}: is a PEFT adapter ({about.get('peft_type')}) of {base}, and no model by itself",
        remedy=f"merge it into {base} (peft's merge_and_unload, then save_pretrained), and run that",
    )


def _refuse_loose_shards(files: Files) -> None:
    """Raises DamagedModel for a folder whose weights no index names: which of them belong together is not guessed."""
    if files.path is None:
        return
    loose = sorted(name for name in os.listdir(files.path) if name.endswith((*SUFFIX.values(), ".gguf")))
    if not loose:
        return
    if loose[0].endswith(".gguf"):
        raise UnsupportedModel(f"{files.origin}: holds GGUF files ({loose[0]})", remedy=NO_GGUF)
    raise DamagedModel(
        f"{files.origin}: has {loose[0]} but neither {WEIGHTS[0][0]} nor {WEIGHTS[1][0]}",
        remedy=f"rename a single file to {WEIGHTS[0][0]}; for shards, download their index too",
    )


def _refuse_pointer(source: ByteSource) -> None:
    """Raises DamagedModel for what git leaves in the place of a large file that was not fetched."""
    if source.size < 1024 and source.read(0, min(len(LFS), source.size)) == LFS:
        raise DamagedModel(f"{source.name}: is a git-lfs pointer, not the file itself", remedy="git lfs pull")


def _check_same(files: Files, a: StoredTensor, b: StoredTensor) -> None:
    """Raises DamagedModel for two different tensors of one name; the bytes are compared where they are at hand."""
    same = (a.dtype, a.shape, a.nbytes) == (b.dtype, b.shape, b.nbytes)
    if same and files.path is not None:
        with files.open(a.file) as one, files.open(b.file) as other:
            for start in range(0, a.nbytes, CHUNK):
                size = min(CHUNK, a.nbytes - start)
                same = same and one.read(a.offset + start, size) == other.read(b.offset + start, size)
    if not same:
        raise DamagedModel(f"{files.origin}: tensor {a.name!r} is in both {a.file} and {b.file}, and not the same")


def _whole(files: Files, name: str, most: int = MOST_BYTES) -> bytes:
    """All bytes of a file of at most ``most`` bytes."""
    with files.open(name) as source:
        if source.size > most:
            raise DamagedModel(f"{name} is too large", need=f"at most {most} bytes", have=f"{source.size} bytes")
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

    A link may lead elsewhere in the folder, or, in the Hugging Face cache, from ``models--ID/snapshots/REVISION`` and
    folders in it to ``models--ID/blobs`` or on to the cache's own ``blobs``. In the cache that is this user's own,
    blobs may be links themselves, to another disk. Raises UntrustedModel for any other, DamagedModel for one that leads
    nowhere.
    """
    try:
        root = folder.resolve(strict=True)
        target = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DamagedModel(f"{folder / name}: cannot be opened", remedy="download the model again") from error
    allowed = [root]
    for snapshots in root.parents:
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            allowed += [repository / "blobs", repository.parent / "blobs"]
    if not any(target.is_relative_to(place) for place in allowed) and not _is_own_blob(folder.absolute(), name):
        raise UntrustedModel(
            f"{folder / name}: is a link that leaves the model's folder",
            have=str(target),
            remedy="copy the file into the folder, or name the folder that it lies in",
        )
    return target


def _is_own_blob(snapshot: Path, name: str) -> bool:
    """Whether a file is a link to a blob of its repository, in the hub cache of this user.

    Nobody but its owner and huggingface_hub, which copies files and no links, puts anything there: where the blobs lie
    is the owner's choice. Of another folder with such names, a stranger's archive for one, that cannot be said.
    """
    from huggingface_hub import constants

    repository, path = snapshot.parent.parent, snapshot / name
    cache = Path(constants.HF_HUB_CACHE)
    if snapshot.parent.name != "snapshots" or repository.parent not in (cache.absolute(), cache.resolve()):
        return False
    blob = os.path.normpath(path.parent / os.readlink(path)) if path.is_symlink() else ""
    return os.path.dirname(blob) == str(repository / "blobs")
