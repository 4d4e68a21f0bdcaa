"""From what a user calls a model to its facts: a shipped spec, a local folder, the local cache, or the hub.

What a shipped spec does not need is imported only where it is needed: ``outsize plan`` answers in half a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from outsize.errors import HubUnreachable, ModelNotFound, UnsupportedModel
from outsize.models.spec import ModelSpec
from outsize.models.spec_json import spec_from_json

if TYPE_CHECKING:
    from outsize.models.files.folder import ModelFolder

SHIPPED = {
    "t5-3b": "t5-3b",
    "google-t5/t5-3b": "t5-3b",
    "eleutherai/gpt-j-6b": "gpt-j-6b",
    "eleutherai/gpt-neox-20b": "gpt-neox-20b",
    "facebook/opt-30b": "opt-30b",
    "facebook/opt-66b": "opt-66b",
    "bigscience/bloom": "bloom",
    "mistralai/mixtral-8x7b-v0.1": "mixtral-8x7b",
    "mistralai/mixtral-8x22b-v0.1": "mixtral-8x22b",
    "qwen/qwen3-30b-a3b": "qwen3-30b-a3b",
    "qwen/qwen3-235b-a22b": "qwen3-235b-a22b",
    "qwen/qwen3-next-80b-a3b-instruct": "qwen3-next-80b-a3b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "deepseek-ai/deepseek-v3": "deepseek-v3",
    "zai-org/glm-4.5-air": "glm-4.5-air",
    "minimaxai/minimax-m2": "minimax-m2",
}


def resolve_spec(model: str, revision: str | None = None) -> ModelSpec:
    """The spec of a shipped id, a local folder, a cached model or a model on the hub (headers only), in this order.

    Raises ModelNotFound, HubUnreachable, DamagedModel, UntrustedModel or UnsupportedModel.
    """
    if revision is None and not Path(model).is_dir() and (shipped := shipped_spec(model)) is not None:
        return shipped
    from outsize.models.survey_cache import folder_spec

    folder = find_folder(model, revision)
    if folder is None:
        from outsize.models.files.hub import remote_model

        folder = remote_model(model, revision)
    return folder_spec(folder)


def shipped_spec(model: str) -> ModelSpec | None:
    """The spec that comes with the package, without torch and network; upper and lower case mean the same."""
    name = SHIPPED.get(model.lower())
    if name is None:
        return None
    return spec_from_json((Path(__file__).parent / "specs" / f"{name}.json").read_text())


def find_folder(model: str, revision: str | None = None, *, whole: bool = False) -> ModelFolder | None:
    """The local folder or the cached snapshot of a model, or None if there is neither.

    ``whole``: a cached snapshot counts only with all its weights. Raises ModelNotFound for what can only be a path, and
    UsageError for settings of Hugging Face's that its library, which loads models too, would fail over.
    """
    from outsize.models.files.folder import NO_GGUF, open_folder
    from outsize.models.files.hub_settings import check_settings

    check_settings(os.environ)
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        if path.suffix == ".gguf":
            raise UnsupportedModel(f"{model}: is a GGUF file", remedy=NO_GGUF)
        raise ModelNotFound(f"{model}: is a file", remedy="the folder that holds config.json and the weights")
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"{model}: no such folder")
    from outsize.models.files.hub import cached_folder

    cached = cached_folder(model, revision, whole=whole)
    return None if cached is None else open_folder(cached)


def fetch_folder(
    model: str, revision: str | None = None, progress: Callable[[int, int], None] | None = None
) -> ModelFolder:
    """A local folder with all weights: found, or downloaded; ``progress`` gets the bytes that have come, of how many.

    Raises as ``resolve_spec``, and DoesNotFit for a full disk.
    """
    folder = find_folder(model, revision, whole=True)
    if folder is None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
            raise HubUnreachable(f"{model}: not in the local cache, and HF_HUB_OFFLINE is set", remedy="unset it")
        from outsize.models.files.download import download
        from outsize.models.files.folder import open_folder

        folder = open_folder(download(model, revision, progress))
    if folder.format == "none":
        raise ModelNotFound(f"{folder.origin}: has a configuration but no weights", remedy="safetensors or .bin files")
    return folder
