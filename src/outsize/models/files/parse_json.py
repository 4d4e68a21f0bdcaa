"""JSON from files that nobody vouches for."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from outsize.errors import DamagedModel

MOST_BYTES = 100_000_000  # the limit that safetensors itself sets for a header
MOST_CONFIG_BYTES = 16_000_000  # of settings, which are parsed into objects of some ten times their size


def parse_json_object(raw: bytes, what: str, *, unique_keys: bool = True) -> dict[str, Any]:
    """The JSON object in ``raw``. Raises DamagedModel, which names ``what``, for anything else.

    Two equal keys are refused where ``unique_keys``: parsers disagree on which one counts, so a file could show one
    reader other tensors than another. (Configurations found in the wild do repeat keys; there the last one counts.)
    """
    if len(raw) > MOST_BYTES:
        raise DamagedModel(f"{what} is too large", need=f"at most {MOST_BYTES} bytes", have=f"{len(raw)} bytes")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise DamagedModel(f"{what} has the key {twice!r} twice")
        return result

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique if unique_keys else None)
    except (ValueError, RecursionError) as error:
        raise DamagedModel(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedModel(f"{what} is not a JSON object")
    return value
