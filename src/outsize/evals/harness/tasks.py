"""The harness' tasks by name: its own, and those of a user's folders."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from lm_eval.tasks import TaskManager

from outsize.errors import OutsizeError, UsageError

NEAR = 5  # names that are suggested for one that is unknown
# What tasks raise that are missing, broken, or of data that cannot be had; libraries below have bases among these.
FAILURES = (LookupError, ValueError, OSError, ImportError, NotImplementedError, jinja2.TemplateError, yaml.YAMLError)


def names(folders: Sequence[Path], patterns: Sequence[str] = ("*",)) -> list[str]:
    """All tasks, groups and tags, the harness' own and those in folders, that match one of the patterns."""
    return sorted(_manager(folders, {}, own=True).match_tasks(list(patterns)))


def find(folders: Sequence[Path], about: dict[str, Any], wanted: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """Names and patterns as names (or paths of YAML files), and the manager that knows them.

    ``folders``: of YAML files, whose tasks come before the harness' own. ``about``: of the model. The harness' own
    index of some 10,000 files takes seconds to read: it is read when a name is not that of a task in the folders.
    Raises UsageError for a name that is unknown, with those that are near.
    """
    files = [name for name in wanted if name.endswith((".yaml", ".yml")) and Path(name).is_file()]
    others = [name for name in wanted if name not in files]
    manager = _manager(folders, about, own=False)
    if not set(others) <= set(manager.all_subtasks):
        manager = _manager(folders, about, own=True)
    found = list(files)
    for name in others:
        matching = sorted(manager.match_tasks([name]))
        if not matching:
            near = difflib.get_close_matches(name, manager.all_tasks, NEAR)
            raise UsageError(
                f"there is no task {name!r}",
                have=f"near ones: {', '.join(near)}" if near else "",
                remedy="outsize eval --list, or --include-path with a folder of YAML files",
            )
        found += matching
    return manager, list(dict.fromkeys(found))


def _manager(folders: Sequence[Path], about: dict[str, Any], *, own: bool) -> TaskManager:
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder of tasks", remedy="another --include-path")
    return TaskManager(include_path=list(folders) or None, include_defaults=own, metadata=about)


def load(manager: TaskManager, names: Sequence[str]) -> list[Any]:
    """Tasks and groups with their data, none twice. Raises OutsizeError for what cannot be had."""
    try:
        loaded = manager.load(list(names))
    except FAILURES as error:
        raise OutsizeError(f"the harness cannot load {', '.join(names)}: {first_line(error)}") from error
    groups = loaded.get("groups", {})
    inside = {child for children in loaded.get("group_map", {}).values() for child in children}
    return [one for several in (groups, loaded["tasks"]) for name, one in several.items() if name not in inside]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
