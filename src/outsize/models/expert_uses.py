"""How often each routed expert of a model was used in earlier runs, kept beside its spec.

The file is small (DeepSeek-V3: 58 layers of 256 experts, some 100 kB), whole or not there, and done without where it
is damaged or cannot be written. Two processes that end at the same moment keep the uses of the later one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from outsize.files import write_whole
from outsize.paths import outsize_cache

SCHEMA = 1
MOST_BYTES = 8 << 20  # of a file; a larger one is not read, and none is written
MOST_USES = 1 << 24  # of a layer's experts in all: older uses count half then, so that what is used now decides
Uses = Mapping[str, Sequence[int]]  # by module ("model.layers.3.mlp.experts"): uses of each of its experts


def keep_routing(spec_key: str, uses: Uses, environ: Mapping[str, str] = os.environ) -> None:
    """Adds a run's uses to those that are kept. A layer whose number of experts changed begins anew.

    ``spec_key``: what the model's spec is kept under. A file that cannot be written is done without.
    """
    kept = known_routing(spec_key, environ)
    layers = {**kept, **{name: _sum(kept.get(name, ()), new) for name, new in uses.items() if new}}
    while any(sum(counts) > MOST_USES for counts in layers.values()):
        layers = {name: tuple(count // 2 for count in counts) for name, counts in layers.items()}
    text = json.dumps({"schema": SCHEMA, "uses": layers}, separators=(",", ":"))
    if not uses or len(text) > MOST_BYTES:
        return
    path = _path(spec_key, environ)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def known_routing(spec_key: str, environ: Mapping[str, str] = os.environ) -> dict[str, tuple[int, ...]]:
    """By module, how often each of its experts was used; empty where nothing is known, or the file is damaged."""
    path = _path(spec_key, environ)
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != SCHEMA:
            return {}
        return {name: _counts(counts) for name, counts in body["uses"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _path(spec_key: str, environ: Mapping[str, str]) -> Path:
    """Beside the spec of that key; keys that are no file names (ids with a slash) by their checksum."""
    plain = re.fullmatch(r"[0-9a-z]{1,64}", spec_key)
    name = spec_key if plain else hashlib.sha256(spec_key.encode()).hexdigest()[:32]
    return outsize_cache(environ) / "specs" / f"{name}.uses.json"


def _counts(counts: Sequence[object]) -> tuple[int, ...]:
    """A layer's uses. Raises ValueError where they are none."""
    found = tuple(count for count in counts if type(count) is int and count >= 0)
    if not isinstance(counts, list) or len(found) != len(counts) or not found:
        raise ValueError("uses are numbers of 0 and more")
    return found


def _sum(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    before = old if len(old) == len(new) else [0] * len(new)
    return tuple(int(a) + int(b) for a, b in zip(before, new, strict=True))
