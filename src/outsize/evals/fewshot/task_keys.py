"""The keys of a YAML file, each read as what it must be."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outsize.errors import UsageError
from outsize.evals.records import is_text

MISSING = object()


class Keys:
    """Values by key. Every getter raises UsageError, with the file and the key, for a value of another kind.

    Nothing is converted: YAML reads ``no`` as false and ``1`` as a number, and a choice that is called so needs quotes.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self._values = values

    def error(self, key: str, what: str, need: str = "") -> UsageError:
        """An error about a key, to be raised."""
        return UsageError(f"{self.path}: {key}: {what}", need=need)

    def known(self, names: frozenset[str], elsewhere: Mapping[str, str]) -> None:
        """Raises UsageError for a key of another name; ``elsewhere`` has reasons why some are not for this file."""
        for key in self._values:
            if key in elsewhere:
                raise self.error(key, f"it {elsewhere[key]}")
            if key not in names:
                close = difflib.get_close_matches(key, names, 1)
                raise self.error(key, "there is no such key", need=close[0] if close else f"{', '.join(sorted(names))}")

    def has(self, key: str) -> bool:
        """Whether it is there."""
        return key in self._values

    def is_text(self, key: str) -> bool:
        """Whether it is there and a text."""
        return isinstance(self._values.get(key), str)

    def text(self, key: str, default: str | None = None, *, empty: bool = False) -> str:
        """A text; without a default it must be there. ``empty``: whether it may be."""
        value = self._values.get(key, MISSING if default is None else default)
        if value is MISSING:
            raise UsageError(f"{self.path}: the key {key} is missing")
        if not is_text(value) or not (value or empty):
            raise self.error(key, f"{_shown(value)} is no text", need="a text; quotes make one of anything")
        return str(value)

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A text, or a list of them, none empty."""
        value = self._values.get(key, list(default))
        several = [value] if isinstance(value, str) else value
        if not isinstance(several, list) or not several:
            raise self.error(key, f"{_shown(value)} is no list of texts")
        for one in several:
            if not one or not is_text(one):
                raise self.error(key, f"{_shown(one)} is no text", need="a text; quotes make one of anything")
        return tuple(several)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{_shown(value)} is neither true nor false")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number, 1 at least."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, f"{_shown(value)} is no whole number above 0")
        return value

    def one_of(self, key: str, names: Sequence[str]) -> str:
        """One of some texts; the first where there is none."""
        value = self.text(key, names[0])
        if value not in names:
            raise self.error(key, f"{value!r} is not understood", need=" or ".join(names))
        return value

    def mapping(self, key: str) -> Mapping[str, str]:
        """Texts by text; empty where there is none."""
        value = self._values.get(key, {})
        if not isinstance(value, dict) or not all(
            isinstance(one, str) and one for pair in value.items() for one in pair
        ):
            raise self.error(key, f"{_shown(value)} is no mapping of names to names")
        return value


def read_keys(path: Path) -> Keys:
    """The keys of a file. Raises UsageError for one that cannot be read, and for anything but a mapping of names."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{path}: a task file is a mapping of keys to values")
    seen = set()
    for key, _ in node.value:  # YAML would silently take the last of two
        if key.value in seen:
            raise UsageError(f"{path}: the key {key.value} is there twice")
        seen.add(key.value)
    return Keys(path, value)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
