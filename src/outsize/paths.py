"""Where things are kept between runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def outsize_cache(environ: Mapping[str, str]) -> Path:
    """The folder of probe results, specs and converted weights: $OUTSIZE_CACHE, else in the user's cache folder."""
    return Path(environ["OUTSIZE_CACHE"]) if environ.get("OUTSIZE_CACHE") else _user_cache(environ) / "outsize"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models, by its own variables, without importing it."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"])
    home = environ.get("HF_HOME")
    return (Path(home) if home else _user_cache(environ) / "huggingface") / "hub"


def _user_cache(environ: Mapping[str, str]) -> Path:
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"])
    return (Path(environ["HOME"]) if environ.get("HOME") else Path.home()) / ".cache"
