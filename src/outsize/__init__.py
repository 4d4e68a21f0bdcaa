"""Run language models larger than your machine, and know what fits and how fast before you download a byte.

``outsize.plan(model, ...)`` says where a model's bytes would rest and how long a token would take;
``outsize.load(model, ...)`` returns a transformers model that runs so. Every error derives from ``OutsizeError``.

Importing this package loads no torch: ``plan`` and ``load`` come from ``outsize.api`` at first use (PEP 562).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from outsize.errors import (
    DamagedModel,
    DoesNotFit,
    HubUnreachable,
    ModelChanged,
    ModelNotFound,
    OutsizeError,
    UnsupportedModel,
    UntrustedModel,
    UsageError,
)
from outsize.threads import choose_wait_policy
from outsize.version import __version__

if TYPE_CHECKING:
    from outsize.api import load, plan

choose_wait_policy(os.environ)


__all__ = [
    "DamagedModel",
    "DoesNotFit",
    "HubUnreachable",
    "ModelChanged",
    "ModelNotFound",
    "OutsizeError",
    "UnsupportedModel",
    "UntrustedModel",
    "UsageError",
    "__version__",
    "load",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in ("load", "plan"):
        from outsize import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
