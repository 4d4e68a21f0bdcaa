"""The run's own tokenizer, without importing transformers where it was made before.

What a model is given is what transformers makes of a text, and tokenizer.json is only a part of that: there are classes
with a template of their own, tokens that tokenizer_config.json adds, and truncation or padding that tokenizer.json asks
for and transformers does not do. So transformers makes the tokenizer once, and what it made is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from outsize.errors import DamagedModel
from outsize.files import write_whole
from outsize.models.files.small_files import SMALL_SUFFIXES, TOKENIZER, check_small_files
from outsize.models.files.tokenizer_limits import check_tokenizer, tokenizer_errors
from outsize.paths import outsize_cache

SCHEMA = 1
MOST_IDS = 1 << 24  # its library writes a line for each number below the highest one, whatever is there
SAMPLE = "The lamp's 2 lights\n\n  é漢 <s> {}"  # with all special tokens in it: what is kept must make the same of it


class TokenCounter:
    """A folder's tokenizer, as far as counting and ``Encoder`` need it.

    Raises ModelNotFound where there is none that transformers can read, UntrustedModel or DamagedModel for files that
    should not be opened at all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: Any = None  # transformers' own
        self._kept: Any = None
        check_small_files(folder)
        check_tokenizer(folder)
        path = outsize_cache(os.environ) / "tokenizers" / f"{_key(folder)}.json"
        try:
            self._take(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, DamagedModel):  # not kept yet, or not whole
            described = _described(self.whole, folder)
            self._take(described)
            if not self._same():
                self._take({**described, "tokenizer": None})
            elif described["tokenizer"] is not None:
                with suppress(OSError):  # a cache that cannot be written is done without
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, json.dumps(described))

    @property
    def whole(self) -> Any:
        """transformers' own tokenizer, which knows chat templates too."""
        if self._whole is None:
            from outsize.models.tracing.pretrained import load_tokenizer

            self._whole = load_tokenizer(self._folder)
        return self._whole

    def encode(self, text: str, add_special_tokens: bool = True, verbose: bool = False) -> list[int]:
        """Tokens of a text, with the special ones that the tokenizer adds, or without."""
        if self._kept is None:
            return list(self.whole.encode(text, add_special_tokens=add_special_tokens, verbose=verbose))
        return list(self._kept.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self.whole.decode(tokens) if self._kept is None else self._kept.decode(tokens, False))

    def count(self, text: str) -> int:
        """Tokens that a model is given for a text."""
        with tokenizer_errors():
            return len(self.encode(text))

    def _take(self, described: dict[str, Any]) -> None:
        """Sets everything that ``_described`` says."""
        from tokenizers import Tokenizer

        self.bos_token_id, self.eos_token_id = described["bos_token_id"], described["eos_token_id"]
        if (text := described["tokenizer"]) is None:
            self._kept = None
            return
        with tokenizer_errors():
            self._kept = Tokenizer.from_str(text) if text else Tokenizer.from_file(str(self._folder / TOKENIZER))
        self._kept.no_truncation()
        self._kept.no_padding()

    def _same(self) -> bool:
        """Whether what would be kept makes the same tokens as transformers' own tokenizer."""
        text = SAMPLE.format(" ".join(map(str, self.whole.all_special_tokens)))
        asked = [(some, special) for some in (text, text * 50) for special in (True, False)]
        try:
            with tokenizer_errors():
                return all(
                    self.encode(some, add_special_tokens=special)
                    == list(self.whole.encode(some, add_special_tokens=special, verbose=False))
                    for some, special in asked
                )
        except DamagedModel:  # whoever asks for tokens is told
            return False


def _described(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """A tokenizer as JSON has it. ``tokenizer``: "" for that of tokenizer.json, None for one of another library."""
    from tokenizers import Tokenizer

    backend, text = getattr(tokenizer, "backend_tokenizer", None), None
    if isinstance(backend, Tokenizer) and max(tokenizer.get_vocab().values(), default=0) < MOST_IDS:
        copy = Tokenizer.from_str(backend.to_str())
        copy.no_truncation()
        copy.no_padding()
        text = copy.to_str()
        with suppress(DamagedModel), tokenizer_errors():
            own = Tokenizer.from_file(str(folder / TOKENIZER))
            own.no_truncation()
            own.no_padding()
            text = "" if own.to_str() == text else text
    return {"tokenizer": text, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _key(folder: Path) -> str:
    """All that transformers makes a tokenizer of: the small files, and versions."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(SMALL_SUFFIXES))
    status = [(name, (folder / name).stat()) for name in names]
    facts = {
        "schema": SCHEMA,
        "folder": str(folder),
        "versions": [metadata.version(name) for name in ("transformers", "tokenizers")],
        "files": [(name, s.st_size, s.st_mtime_ns) for name, s in status],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
