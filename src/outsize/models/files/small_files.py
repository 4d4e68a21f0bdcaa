"""The small files of a model's folder (settings, tokenizers, templates), checked before anything reads them.

They come from strangers as weights do, and are read by libraries that open whatever they are pointed at. Refused are
links that leave the folder (the hub cache's own blobs apart), pipes, devices, and files beyond all reason.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel, UntrustedModel
from outsize.models.files.byte_source import LocalFile
from outsize.models.files.folder import CONFIG, inside
from outsize.models.files.parse_json import MOST_BYTES, MOST_CONFIG_BYTES, parse_json_object

# Configuration, generation settings, tokenizers and chat templates. Never code.
SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
LARGEST_SMALL = 200_000_000  # bytes; the largest vocabularies that are published take some 35 MB
TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
TEMPLATES = "additional_chat_templates"
# Settings, not vocabularies: published ones take a few megabytes at most, where they list added tokens.
SETTINGS = (CONFIG, TOKENIZER_CONFIG, GENERATION_CONFIG, "special_tokens_map.json", "preprocessor_config.json")


def check_small_files(folder: Path) -> None:
    """Checks every small file that a library might open. Raises UntrustedModel or DamagedModel, which name the file."""
    for name in _names(folder):
        check_small_file(folder, name)
    if os.path.lexists(folder / TOKENIZER_CONFIG):
        _check_named_files(folder)


def check_small_file(folder: Path, name: str) -> Path:
    """The real path of a small file. Raises UntrustedModel or DamagedModel; nothing of the file is read."""
    path = inside(folder, name)
    try:
        status = path.stat()
    except OSError as error:
        raise DamagedModel(f"{folder / name}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedModel(f"{folder / name}: not a regular file", remedy="download the model again")
    most = MOST_CONFIG_BYTES if name in SETTINGS else MOST_BYTES if name == TOKENIZER else LARGEST_SMALL
    if status.st_size > most:
        raise DamagedModel(
            f"{folder / name}: is too large", need=f"at most {most} bytes", have=f"{status.st_size} bytes"
        )
    return path


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of settings; an empty one where there is no such file.

    Raises UntrustedModel or DamagedModel.
    """
    if not os.path.lexists(folder / name):
        return {}
    with LocalFile(check_small_file(folder, name), name) as source:
        return parse_json_object(source.read(0, source.size), f"{folder / name}", unique_keys=False)


def _names(folder: Path) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(SMALL_SUFFIXES)]
        if os.path.lexists(folder / TEMPLATES):
            inside(folder, TEMPLATES)
            names += [f"{TEMPLATES}/{name}" for name in os.listdir(folder / TEMPLATES)]
    except OSError as error:
        raise DamagedModel(f"{folder}: cannot be listed: {error.strerror}") from error
    return sorted(name for name in names if not name.endswith(".index.json"))


def _check_named_files(folder: Path) -> None:
    """Raises UntrustedModel where the tokenizer's settings name its file elsewhere than in the folder."""
    named = read_settings(folder, TOKENIZER_CONFIG).get("fast_tokenizer_files")
    for name in named if isinstance(named, list) else ():
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise UntrustedModel(f"{folder / TOKENIZER_CONFIG}: names {name!r}, which is not in the model's folder")
