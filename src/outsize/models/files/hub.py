"""The Hugging Face hub and its local cache, as places where a model's files may be.

huggingface_hub is imported inside functions: planning a shipped model does not need it. Its own variables (HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) mean what they always mean. All its errors are translated here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from outsize.errors import HubUnreachable, ModelChanged, ModelNotFound, OutsizeError, UsageError
from outsize.models.files.byte_source import ByteSource
from outsize.models.files.folder import (
    CONFIG,
    ModelFolder,
    open_folder,
    read_index,
    read_model,
    shards_of,
    weights_file,
)
from outsize.models.files.http_bounds import CHECK_NETWORK, RETRY_STATUS, bounded

TIMEOUT_S = 10.0  # without a byte
RETRIES = 3  # of one read, each resuming where the last broke off
RETRY_WAIT_S = 1.0  # before the first retry, doubled for each


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, with what the hub says of its content: ``sha256``, or of small ones git's own ``sha1``.

    Either is "" where the hub does not say it.
    """

    name: str
    size: int
    sha256: str
    sha1: str = ""


@dataclass(frozen=True, slots=True)
class Repository:
    """The files of a model at one commit, so that all reads see the same state."""

    model_id: str
    commit: str
    files: dict[str, HubFile]


def cached_folder(model_id: str, revision: str | None = None, *, whole: bool = False) -> Path | None:
    """The snapshot in the local cache that holds this model's config.json, or None. Asks no network.

    ``whole``: only if its weights are there too, every shard of them.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model_id, CONFIG, revision=revision)
    except HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if not whole or _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether the folder's headers can be read, all shards included; files cut short count as missing."""
    try:
        return open_folder(folder).format != "none"
    except OutsizeError:
        return False


def remote_model(model_id: str, revision: str | None = None, token: str | None = None) -> ModelFolder:
    """Configuration and headers of a model on the hub, by range requests: nothing is downloaded or kept.

    Raises ModelNotFound (no such model or revision, or no access to it), HubUnreachable, DamagedModel, UntrustedModel
    or UnsupportedModel.
    """
    return read_model(RemoteFiles(repository(model_id, revision, token), token))


def repository(model_id: str, revision: str | None = None, token: str | None = None) -> Repository:
    """The names, sizes and checksums of a model's files, in one request. Raises ModelNotFound or HubUnreachable."""
    from huggingface_hub import HfApi

    with translated(model_id, revision):
        info = HfApi(token=token).model_info(model_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    files = {}
    for sibling in info.siblings or ():
        if sibling.size is None:
            continue
        name, size, sha256 = sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else ""
        if not (isinstance(name, str) and isinstance(size, int) and size >= 0 and isinstance(sha256, str)):
            raise HubUnreachable(f"{model_id}: the hub describes a file that cannot be", remedy=CHECK_NETWORK)
        blob = str(sibling.blob_id)
        sha1 = blob if not sibling.lfs and re.fullmatch("[0-9a-f]{40}", blob) else ""
        files[name] = HubFile(name, size, sha256, sha1)
    if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):  # it becomes the name of a folder
        raise HubUnreachable(f"{model_id}: the hub names no commit", remedy=CHECK_NETWORK)
    return Repository(model_id, str(info.sha), files)


class RemoteFiles:
    """The Files of a repository at one commit; see folder.Files."""

    path = None

    def __init__(self, of: Repository, token: str | None) -> None:
        self.origin = of.model_id
        self._repository = of
        self._token = token

    def has(self, name: str) -> bool:
        """Whether the repository has a file of that name."""
        return name in self._repository.files

    def open(self, name: str) -> AbstractContextManager[ByteSource]:
        """The file of that name; nothing is requested yet."""
        return nullcontext(RemoteFile(self._repository, name, self._token))

    def needed(self) -> tuple[str, ...]:
        """The names of the files that hold the weights in the preferred format, the index included."""
        found = weights_file(self)
        if found is None:
            return ()
        name, kind = found
        return (name, *shards_of(read_index(self, name, kind))) if name.endswith(".json") else (name,)


class RemoteFile:
    """A ByteSource over a file on the hub: each read is one range request, resumed if the connection breaks."""

    remote = True

    def __init__(self, of: Repository, name: str, token: str | None) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.name = name
        self.size = of.files[name].size
        self._model_id = of.model_id
        self._commit = of.commit
        self._url = hf_hub_url(of.model_id, name, revision=of.commit)
        self._headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``. Raises HubUnreachable, ModelNotFound or ModelChanged."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        got = bytearray()
        failures = 0
        with translated(self._model_id, self._commit):
            while len(got) < length:
                try:
                    for piece in self._pieces(offset + len(got), length - len(got)):
                        got += piece
                    if len(got) >= length:
                        break
                    raise httpx2.RemoteProtocolError("the answer ended early")
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    final = isinstance(error, HfHubHTTPError) and error.response.status_code not in RETRY_STATUS
                    if final or failures == RETRIES:
                        raise
                    time.sleep(RETRY_WAIT_S * 2**failures)
                    failures += 1
        return bytes(got[:length])

    def _pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """One request; stops when it has enough, whatever the server would send."""
        from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]

        headers = {**self._headers, "Range": f"bytes={offset}-{offset + length - 1}"}
        with http_stream_backoff(
            "GET", self._url, headers=headers, timeout=TIMEOUT_S, retry_on_exceptions=(), retry_on_status_codes=()
        ) as response:
            hf_raise_for_status(response)
            if response.status_code == 206:
                given = response.headers.get("Content-Range", "")
                if given != f"bytes {offset}-{offset + length - 1}/{self.size}":
                    raise ModelChanged(f"{self._model_id}: {self.name} changed on the hub", have=given)
            elif offset > 0:
                raise HubUnreachable(f"{self._model_id}: the hub sends whole files only", remedy=CHECK_NETWORK)
            for piece in response.iter_bytes():
                yield piece
                length -= len(piece)
                if length <= 0:
                    return


@contextmanager
def translated(
    model_id: str, revision: str | None = None, name: str = "a file", most: int | None = None
) -> Iterator[None]:
    """Errors of huggingface_hub and of its HTTP client, as ours: ModelNotFound or HubUnreachable.

    A file that is downloaded meanwhile may have ``most`` bytes.
    """
    import httpx2
    from huggingface_hub.errors import FileMetadataError

    network = (httpx2.HTTPError, httpx2.InvalidURL, FileMetadataError, ConnectionError, TimeoutError)
    at = f"{model_id} at {revision}" if revision else model_id
    try:
        with bounded(at, most):
            yield
    except OutsizeError:
        raise
    except Exception as error:
        ours = _refused(error, at, name)
        if ours is None and isinstance(error, network):
            reason = f"{type(error).__name__}: {error}"
            ours = HubUnreachable(f"{at}: the hub cannot be reached ({reason})", remedy=CHECK_NETWORK)
        if ours is None and not isinstance(error, OSError):  # those of the local disk are the caller's to tell
            ours = HubUnreachable(f"{at}: the hub's answer makes no sense ({error!r})", remedy=CHECK_NETWORK)
        if ours is None:
            raise
        raise ours from error


def _refused(error: Exception, at: str, name: str) -> OutsizeError | None:
    """What huggingface_hub understood, in our words; None for any other error."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            remedy = "accept its terms on its page, then set HF_TOKEN"
            return ModelNotFound(f"{at}: the hub asks for an agreement first", remedy=remedy)
        case errors.RepositoryNotFoundError():
            remedy = "check the spelling; for a private model set HF_TOKEN"
            return ModelNotFound(f"{at}: not on the hub, or private", remedy=remedy)
        case errors.RevisionNotFoundError():
            return ModelNotFound(f"{at}: no such revision", remedy="another revision, or none for the newest")
        case errors.RemoteEntryNotFoundError():
            return ModelNotFound(f"{at}: has no {name}", remedy="a repository in transformers' format")
        case errors.HFValidationError():
            return ModelNotFound(f"{at}: neither a folder nor a hub id", remedy="a path, or OWNER/NAME")
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            remedy = "unset HF_HUB_OFFLINE; check the network, HF_ENDPOINT and proxies"
            return HubUnreachable(f"{at}: not in the local cache, and the hub cannot be asked", remedy=remedy)
        case UnicodeEncodeError():  # of a header; its own text has the token in it
            return UsageError("HF_TOKEN has a character that no token has", remedy="copy it again, without quotes")
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return ModelNotFound(f"{at}: the hub refuses access", remedy="set a valid HF_TOKEN")
        case errors.HfHubHTTPError():
            return HubUnreachable(
                f"{at}: the hub answered with error {error.response.status_code}", remedy="later again"
            )
    return None
