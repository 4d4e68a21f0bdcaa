"""A task file: YAML that says what is asked, how it is written, and what counts as right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outsize.errors import UsageError
from outsize.evals.fewshot.metrics import CHOICE_METRICS, EXACT_MATCH, Matching
from outsize.evals.fewshot.task_keys import Keys, read_keys
from outsize.evals.fewshot.template import Template, parse_template

Draw = Literal["fixed", "per_row"]

COMMON = frozenset(
    (
        *("task", "instruction", "template", "fields", "choices", "answer", "metric", "examples", "test", "draw"),
        *("target_delimiter", "fewshot_delimiter"),
    )
)
ONLY_CHOICES = frozenset(("balanced", "unconditional"))
ONLY_FREE = frozenset(("stop", "max_new_tokens", "strip", "ignore_case", "ignore_punctuation"))


@dataclass(frozen=True, slots=True)
class Task:
    """What a task file says. Paths are whole; ``columns``: other names that fields have in the files.

    ``choices`` are those of every row, or ``choices_field`` names each row's own; the answer is free where there is
    neither. ``draw``: "fixed", the same examples for all rows of a draw, or "per_row". ``unconditional``: the context
    that stands for none in ``acc_mutual_info``.
    """

    path: Path
    name: str
    template: Template
    answer: str
    test: Path
    examples: Path | None = None
    instruction: str = ""
    choices: tuple[str, ...] = ()
    choices_field: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    metrics: tuple[str, ...] = ()
    draw: Draw = "fixed"
    balanced: bool = False
    unconditional: str = ""
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64
    matching: Matching = field(default_factory=Matching)

    @property
    def free(self) -> bool:
        """Whether the model writes the answer itself."""
        return not self.choices and not self.choices_field


def read_task(path: Path) -> Task:
    """The task in a file. Raises UsageError, naming file and key, for anything that is not understood."""
    keys = read_keys(path)
    free = not keys.has("choices")
    keys.known(COMMON | (ONLY_FREE if free else ONLY_CHOICES), _elsewhere(free))
    choices, choices_field = _choices(keys)
    try:
        template = parse_template(keys.text("template"))
    except UsageError as error:
        raise keys.error("template", error.what, need=error.need) from None
    if not template.fields:
        raise keys.error("template", "it names no field, so all rows would be the same", need="{name}")
    answer = keys.text("answer")
    fewshot_delimiter = keys.text("fewshot_delimiter", "\n\n", empty=True)
    return Task(
        path=path,
        name=keys.text("task", path.stem),
        template=template,
        answer=answer,
        test=_file(keys, "test"),
        examples=_file(keys, "examples") if keys.has("examples") else None,
        instruction=keys.text("instruction", "", empty=True),
        choices=choices,
        choices_field=choices_field,
        columns=_columns(keys, {*template.fields, answer, choices_field}),
        target_delimiter=keys.text("target_delimiter", " ", empty=True),
        fewshot_delimiter=fewshot_delimiter,
        metrics=metrics_of(keys.texts("metric", ("exact_match",) if free else ("acc", "acc_norm")), free, keys),
        draw="per_row" if keys.one_of("draw", ("fixed", "per_row")) == "per_row" else "fixed",
        balanced=keys.flag("balanced", False),
        unconditional=keys.text("unconditional", "", empty=True),
        stop=keys.texts("stop", (fewshot_delimiter,) if fewshot_delimiter.strip(" ") else ("\n",)),
        max_new_tokens=keys.count("max_new_tokens", 64),
        matching=Matching(
            keys.flag("strip", True), keys.flag("ignore_case", False), keys.flag("ignore_punctuation", False)
        ),
    )


def metrics_of(names: tuple[str, ...], free: bool, keys: Keys | None = None) -> tuple[str, ...]:
    """The metrics, each once. Raises UsageError for names that there are not."""
    known = (EXACT_MATCH,) if free else CHOICE_METRICS
    for name in names:
        if name not in known:
            what, need = f"there is no metric {name!r} for {'free answers' if free else 'choices'}", ", ".join(known)
            raise UsageError(what, need=need) if keys is None else keys.error("metric", what, need=need)
    return tuple(dict.fromkeys(names))


def _elsewhere(free: bool) -> Mapping[str, str]:
    """Why keys that exist make no sense here."""
    if free:
        return dict.fromkeys(ONLY_CHOICES, "is for tasks with choices")
    return dict.fromkeys(ONLY_FREE, "is for tasks without choices")


def _choices(keys: Keys) -> tuple[tuple[str, ...], str]:
    """The choices of every row, or the field of each row that holds its own."""
    if not keys.has("choices"):
        return (), ""
    if keys.is_text("choices"):
        return (), keys.text("choices")
    choices = keys.texts("choices", ())
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise keys.error("choices", "a choice needs two different ones at least, and none twice")
    return choices, ""


def _columns(keys: Keys, used: set[str]) -> Mapping[str, str]:
    columns = keys.mapping("fields")
    for name in columns:
        if name not in used:
            raise keys.error("fields", f"neither template, choices nor answer names {name!r}")
    return columns


def _file(keys: Keys, name: str) -> Path:
    path = keys.path.parent / Path(keys.text(name)).expanduser()
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise keys.error(name, f"{path.name} is neither .jsonl nor .csv")
    if not path.is_file():
        raise keys.error(name, f"there is no file {path}")
    return path
