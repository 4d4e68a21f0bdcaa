"""The name of the argument and of the output that hold the KV cache: the one place that knows it.

transformers 5.24 renamed ``past_key_values`` and ``cache_params`` to ``cache``, in forward passes and in their outputs.
What a model takes is read from the signature of its forward pass, because single models may keep an older name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

NAMES = ("cache", "past_key_values", "cache_params")  # the newest first


def cache_argument(model: Any) -> str | None:
    """The argument of a model's forward pass that takes a KV cache, or None where there is none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in accepted), None)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """The keyword argument that hands a KV cache to a model's forward pass, or to its ``generate``."""
    name = cache_argument(model)
    if name is None:
        raise TypeError(f"{type(model).__name__} takes no KV cache")
    return {name: cache}


def cache_in(values: Any) -> Any:
    """The KV cache among a forward pass's keyword arguments or in its output, or None.

    All names count: newer versions of transformers accept the older names from callers, and rename them only after
    the hooks have run. Items are read one by one, because asking an output of a newer version for an older name warns.
    """
    items = values.items() if isinstance(values, Mapping) else ()
    return next((value for name, value in items if name in NAMES and value is not None), None)
