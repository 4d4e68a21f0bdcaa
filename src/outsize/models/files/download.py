"""Bring a model from the hub into the local Hugging Face cache, only what is needed, and verified."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel, DoesNotFit, ModelNotFound
from outsize.files import is_disk_full
from outsize.models.files.folder import CONFIG
from outsize.models.files.hub import HubFile, RemoteFiles, Repository, repository, translated
from outsize.models.files.parse_json import MOST_CONFIG_BYTES
from outsize.models.files.small_files import LARGEST_SMALL, SMALL_SUFFIXES

MOST_SMALL = 1000  # small files of a repository, each of which is a request; models have some ten
Progress = Callable[[int, int], None]


def download(
    model_id: str,
    revision: str | None = None,
    progress: Progress | None = None,
    token: str | None = None,
) -> Path:
    """Download a model's weights (safetensors if it has them, else ``.bin``), configuration and tokenizer.

    Files already in the cache stay as they are; interrupted ones are resumed. ``progress`` is told bytes done and
    bytes in all. Each file whose checksum the hub says is checked as it arrives. One file after the other, so that an
    interrupt ends it at once; within a large file huggingface_hub uses several connections where the hub offers them.

    Returns the snapshot's folder. Raises ModelNotFound, HubUnreachable, DoesNotFit (the disk is too small) or
    DamagedModel (a checksum is wrong, twice).
    """
    folder = fetch_config(model_id, revision, token).parent
    files = repository(model_id, folder.name, token)
    if CONFIG in files.files and not _is_right(folder / CONFIG, files.files[CONFIG]):
        _remove(folder / CONFIG)  # it came before anything was known of its content
    wanted = wanted_files(files, token)
    missing = [file for file in wanted if not (folder / file.name).exists()]
    total, done = sum(file.size for file in wanted), sum(file.size for file in wanted if file not in missing)
    _check_space(model_id, folder, sum(file.size for file in missing))

    def report(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(min(done, total), total)

    report(0)
    for file in missing:
        before = done
        fetch_file(files, file, token, report)
        report(before + file.size - done)  # what was resumed or reported short
    return folder


def wanted_files(files: Repository, token: str | None = None) -> tuple[HubFile, ...]:
    """What running the model needs: weights in one format, and the small files beside them."""
    weights = set(RemoteFiles(files, token).needed())
    if not weights:
        raise ModelNotFound(f"{files.model_id}: has no weights", remedy="a repository in transformers' format")
    small = [file for name, file in files.files.items() if name not in weights and is_small_file(file)]
    if len(small) > MOST_SMALL:
        raise DamagedModel(
            f"{files.model_id}: has too many small files", need=f"at most {MOST_SMALL}", have=f"{len(small)}"
        )
    return tuple(file for name, file in sorted(files.files.items()) if name in weights or file in small)


def is_small_file(file: HubFile) -> bool:
    """Configuration and tokenizer files beside the weights; not other formats' indexes, not folders within."""
    name = file.name
    return (
        "/" not in name
        and name.endswith(SMALL_SUFFIXES)
        and not name.endswith(".index.json")
        and file.size <= LARGEST_SMALL
    )


def _check_space(model_id: str, folder: Path, need: int) -> None:
    """Raises DoesNotFit if the drive that holds the cache has too few free bytes."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DoesNotFit(
            f"{model_id}: the download does not fit the disk that holds {folder}",
            need=f"{need} bytes",
            have=f"{free} bytes",
            remedy="free some space, or set HF_HOME to a larger disk",
            shortfall_bytes=need - free,
        )


def fetch_file(
    files: Repository,
    file: HubFile,
    token: str | None = None,
    report: Callable[[int], None] = lambda new: None,
    cache: Path | None = None,
) -> Path:
    """One file with its checksum right, in ``cache`` or Hugging Face's own: its path.

    A file that arrives wrong is removed and fetched once more. Raises as ``download`` does.
    """
    for _ in range(2):
        path = Path(_fetch(files.model_id, file.name, files.commit, token, file.size, report, cache))
        if _is_right(path, file):
            return path
        _remove(path)
    raise DamagedModel(
        f"{files.model_id}: {file.name} arrived damaged twice: its size or checksum is not what the hub says",
        remedy="download it again over another network",
    )


def _is_right(path: Path, file: HubFile) -> bool:
    """Whether a file's size and content are what the hub says."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    return not file.sha1 or _git_sha1(path.read_bytes()) == file.sha1


def _git_sha1(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _remove(path: Path) -> None:
    """A file of the cache, and the blob that it is a link to."""
    path.resolve().unlink()
    path.unlink(missing_ok=True)


def fetch_config(model_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The configuration into Hugging Face's cache, which records there which commit the revision stands for: its path.

    Raises as ``download`` does.
    """
    return Path(_fetch(model_id, CONFIG, revision, token, MOST_CONFIG_BYTES, lambda _: None))


def _fetch(
    model_id: str,
    name: str,
    revision: str | None,
    token: str | None,
    most: int,
    report: Callable[[int], None],
    cache: Path | None = None,
) -> str:
    """One file of at most ``most`` bytes into the cache, through huggingface_hub."""
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm

    class Reporter(tqdm):  # type: ignore[misc]
        """A bar that is never drawn and passes its steps on."""

        def __init__(self, *args: Any, **keywords: Any) -> None:
            keywords.pop("name", None)
            super().__init__(*args, **{**keywords, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            report(int(n or 0))

    try:
        with translated(model_id, revision, name, most):
            return hf_hub_download(model_id, name, revision=revision, token=token, tqdm_class=Reporter, cache_dir=cache)
    except OSError as error:
        if is_disk_full(error):
            raise DoesNotFit(f"{model_id}: the disk is full", remedy="free some space, or set HF_HOME") from error
        raise DamagedModel(f"{model_id}: {name} cannot be kept: {error}", remedy="check HF_HOME") from error
