"""A model's converted copy: where it is kept, whether it is there, and how it is made. No torch unless one is made."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outsize.convert.checksums import Checksums, read_checksums
from outsize.convert.convert import CONVERTER, PARTIAL, convert, is_converted
from outsize.convert.source import FolderSource, Identity, Source, identify, identify_commit
from outsize.errors import UsageError
from outsize.models.files.folder import ModelFolder, open_folder
from outsize.models.quantization import read_quantisation
from outsize.models.resolve import fetch_folder, find_folder
from outsize.models.survey_cache import folder_spec
from outsize.paths import outsize_cache
from outsize.planner.plan import Weights
from outsize.planner.planner import as_stored

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Conversion:
    """Where a converted copy is. ``source_bytes``: what was read for it now; 0 where it was there already."""

    folder: Path
    checksums: Checksums
    source_bytes: int


def converted_folder(
    model: str,
    weights: Weights,
    revision: str | None = None,
    on_download: Progress | None = None,
    on_convert: Progress = _silent,
) -> ModelFolder:
    """The folder to run a model from in int8 or int4: itself if it is so, else its copy in the cache, made once.

    Raises as ``convert_model`` does, and UsageError for a model that is quantised to another format already.
    """
    found = find_folder(model, revision)
    if found is not None and read_quantisation(found.config) is not None:
        folder = fetch_folder(model, revision, on_download)
        as_stored(folder_spec(folder), weights)
        return folder
    if found is not None and found.path is not None:
        identity = identify(found)
        place = cache_place(identity, weights)
        if is_converted(place, identity.digest, weights):
            return open_folder(place)
    return open_folder(
        convert_model(model, weights, revision=revision, on_download=on_download, on_convert=on_convert).folder
    )


def convert_model(
    model: str,
    weights: str,
    *,
    out: Path | None = None,
    revision: str | None = None,
    discard_source: bool = False,
    on_download: Progress | None = None,
    on_convert: Progress = _silent,
) -> Conversion:
    """Converts a model into ``out``, by default into its place in the cache; what is there already is not made again.

    ``discard_source``: a hub model's files are downloaded one at a time, converted, and removed.
    Raises as ``store.convert`` does, and whatever finding or downloading the model may raise.
    """
    if out is not None:
        out = Path(os.path.abspath(out.expanduser()))  # "." has no name that .partial could be put after
        if not out.name:
            raise UsageError(f"cannot convert into {out}", remedy="--out DIR, a folder that is new or empty")
    whole = find_folder(model, revision, whole=True) if discard_source else None
    if whole is None and discard_source:
        folder, place, source = _from_hub(model, revision, weights, out)
    else:
        if discard_source and Path(model).expanduser().is_dir():
            raise UsageError(f"{model} is a folder of yours: its files stay", remedy="without --discard-source")
        folder = whole or fetch_folder(model, revision, on_download)
        source = FolderSource(folder)
        place = out or cache_place(source.identity, weights)
    identity = source.identity
    there = is_converted(place, identity.digest, weights)
    steps: list[int] = []  # the first says what an earlier run had done

    def progress(done: int, total: int) -> None:
        steps[1:] = [done]
        on_convert(done, total)

    if there and out is None:
        source.close()
        found = read_checksums(place)
        assert found is not None
        return Conversion(place, found, 0)
    made = convert(source, folder.tensors, folder_spec(folder), weights, place, progress)
    return Conversion(place, made, steps[-1] - steps[0] if steps else 0)


def cache_place(identity: Identity, weights: str) -> Path:
    """Where the cache keeps the converted copy of a source."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", identity.name).strip(".-") or "model"
    key = hashlib.sha256(f"{identity.digest} {weights} {CONVERTER}".encode()).hexdigest()[:12]
    return outsize_cache(os.environ) / "converted" / f"{name}-{weights}-{key}"


def _from_hub(model: str, revision: str | None, weights: str, out: Path | None) -> tuple[ModelFolder, Path, Source]:
    """Headers by range requests, where the copy goes, and a source whose files come one at a time."""
    from outsize.convert.hub_source import HubSource
    from outsize.models.files.download import fetch_config
    from outsize.models.files.folder import read_model
    from outsize.models.files.hub import RemoteFiles, repository

    commit = fetch_config(model, revision).parent.name
    files = repository(model, commit)
    folder = read_model(RemoteFiles(files, None))
    place = out or cache_place(identify_commit(model, commit), weights)
    return folder, place, HubSource(folder, files, place.with_name(place.name + PARTIAL))
