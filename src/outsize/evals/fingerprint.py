"""What tells one model from another by its bytes, wherever it lies and whenever it was copied."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from outsize.errors import DamagedModel
from outsize.models.files.folder import ModelFolder
from outsize.models.files.small_files import check_small_files

SAMPLES = 64  # places of each file that are looked at
SAMPLE_BYTES = 4096


def fingerprint(folder: ModelFolder) -> str:
    """A checksum of the configuration, the headers and samples of every file of weights: 64 places, 4 KiB each.

    Not of all bytes: that would take as long as a sweep; training changes them everywhere. Raises DamagedModel for
    files that cannot be read.
    """
    assert folder.path is not None
    tensors = [(t.name, t.dtype, t.shape, t.file, t.offset) for t in folder.tensors]
    facts = json.dumps([folder.config, sorted(tensors)], sort_keys=True, default=list)
    whole = hashlib.sha256(facts.encode())
    for file in sorted(folder.files, key=lambda file: file.name):
        whole.update(f"{file.name} {file.size}".encode())
        _sample(folder.path / file.name, file.size, whole)
    return whole.hexdigest()[:32]


def tokenizer_fingerprint(path: Path) -> str:
    """A checksum of the files that a tokenizer is made of, in a model's folder.

    Raises UntrustedModel or DamagedModel for a file that should not be opened.
    """
    check_small_files(path)
    whole = hashlib.sha256()
    names = (
        "tokenizer*",
        "*.model",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
    )
    for file in sorted({file for name in names for file in path.glob(name) if file.is_file()}):
        whole.update(file.name.encode())
        whole.update(file.read_bytes())
    return whole.hexdigest()[:32]


def _sample(path: Path, size: int, whole: hashlib._Hash) -> None:
    try:
        with path.open("rb") as file:
            for place in range(SAMPLES):
                file.seek(max(size - SAMPLE_BYTES, 0) * place // (SAMPLES - 1))
                whole.update(file.read(SAMPLE_BYTES))
    except OSError as error:
        raise DamagedModel(f"{path} cannot be read: {error.strerror}") from error
