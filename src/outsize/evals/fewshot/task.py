"""A task file: YAML that says what is asked, how it is written, and what counts as right.

Nothing is converted: YAML reads ``no`` as false and ``1`` as a number, and a choice that is called so needs quotes.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from outsize.engine.request import is_text
from outsize.errors import UsageError
from outsize.evals.fewshot.metrics import CHOICE_METRICS, EXACT_MATCH, Matching
from outsize.evals.fewshot.template import Template, parse_template

ONLY_CHOICES = {"balanced", "unconditional"}
ONLY_FREE = {"stop", "max_new_tokens", "strip", "ignore_case", "ignore_punctuation"}


def _file(value: Any, info: ValidationInfo) -> Any:
    """A path, seen from the task file. Raises UsageError for one that is not there, or of another kind."""
    if not isinstance(value, str) or not value:
        return value
    file: Path = info.data["path"].parent / Path(value).expanduser()
    if file.suffix.lower() not in (".jsonl", ".csv"):
        raise _wrong(info.data["path"], str(info.field_name), f"{file.name} is neither .jsonl nor .csv")
    if not file.is_file():
        raise _wrong(info.data["path"], str(info.field_name), f"there is no file {file}")
    return file


def _template(value: Any, info: ValidationInfo) -> Any:
    if not is_text(value) or not value:
        return value
    try:
        template = parse_template(value)
        if not template.fields:
            raise UsageError("it names no field, so all rows would be the same", need="{name}")
    except UsageError as error:
        raise _wrong(info.data["path"], "template", error.what, error.need) from None
    return template


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _sound(value: str) -> str:
    if not is_text(value):
        raise ValueError
    return value


MayBeEmpty = Annotated[str, AfterValidator(_sound)]
Text = Annotated[MayBeEmpty, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_several), Field(min_length=1)]
File = Annotated[Path, BeforeValidator(_file)]


class Task(BaseModel):
    """What a task file says. ``columns``: other names that fields have in the files of rows.

    ``choices`` are those of every row, or ``choices_field`` names each row's own; the answer is free where there is
    neither. ``draw``: "fixed", the same examples for all rows of a draw, or "per_row". ``unconditional``: the context
    that stands for none in ``acc_mutual_info``.
    """

    model_config = ConfigDict(frozen=True, strict=True, arbitrary_types_allowed=True)

    path: Path
    name: Text = Field(default_factory=lambda known: known["path"].stem, alias="task")
    template: Annotated[Template, BeforeValidator(_template)]
    answer: Text
    test: File
    examples: File | None = None
    instruction: MayBeEmpty = ""
    choices: Texts = ()
    choices_field: MayBeEmpty = ""
    columns: dict[Text, Text] = Field(default_factory=dict, alias="fields")
    target_delimiter: MayBeEmpty = " "
    fewshot_delimiter: MayBeEmpty = "\n\n"
    metrics: Texts = Field(
        default_factory=lambda known: (
            ("acc", "acc_norm") if known["choices"] or known["choices_field"] else (EXACT_MATCH,)
        ),
        alias="metric",
    )
    draw: Literal["fixed", "per_row"] = "fixed"
    balanced: bool = False
    unconditional: MayBeEmpty = ""
    stop: Texts = Field(
        default_factory=lambda known: (
            (known["fewshot_delimiter"],) if known["fewshot_delimiter"].strip(" ") else ("\n",)
        )
    )
    max_new_tokens: int = Field(64, ge=1)
    strip: bool = True
    ignore_case: bool = False
    ignore_punctuation: bool = False

    @property
    def free(self) -> bool:
        """Whether the model writes the answer itself."""
        return not self.choices and not self.choices_field

    @property
    def matching(self) -> Matching:
        return Matching(self.strip, self.ignore_case, self.ignore_punctuation)

    def with_metrics(self, names: tuple[str, ...]) -> Task:
        """The same task, judged by other metrics, each once. Raises UsageError for names that there are not."""
        known = (EXACT_MATCH,) if self.free else CHOICE_METRICS
        for name in names:
            if name not in known:
                kind = "free answers" if self.free else "choices"
                raise UsageError(f"there is no metric {name!r} for {kind}", need=", ".join(known))
        return self.model_copy(update={"metrics": tuple(dict.fromkeys(names))})

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.choices and len(set(self.choices)) < max(len(self.choices), 2):
            raise _wrong(self.path, "choices", "a choice needs two different ones at least, and none twice")
        for name in self.columns:
            if name not in {*self.template.fields, self.answer, self.choices_field}:
                raise _wrong(self.path, "fields", f"neither template, choices nor answer names {name!r}")
        return self


def read_task(path: Path) -> Task:
    """The task in a file. Raises UsageError, naming file and key, for anything that is not understood."""
    values = _read(path)
    free = "choices" not in values
    other, kind = (ONLY_CHOICES, "with") if free else (ONLY_FREE, "without")
    names = {field.alias or name for name, field in Task.model_fields.items()} - {"path", "choices_field", *other}
    for key in values:
        if key in other:
            raise _wrong(path, key, f"it is for tasks {kind} choices")
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            raise _wrong(path, key, "there is no such key", close[0] if close else ", ".join(sorted(names)))
    own = {"choices_field": values["choices"]} if isinstance(values.get("choices"), str) else {}
    shared = {key: value for key, value in values.items() if not (own and key == "choices")}
    try:
        task = Task.model_validate({**shared, **own, "path": path})
    except ValidationError as error:
        raise _understood(path, error, values) from None
    try:
        return task.with_metrics(task.metrics)
    except UsageError as error:
        raise _wrong(path, "metric", error.what, error.need) from None


def _read(path: Path) -> dict[str, Any]:
    """A YAML file's keys and values. Raises UsageError for one that cannot be read, and for anything else in it."""
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
    return value


def _understood(path: Path, error: ValidationError, values: Mapping[str, Any]) -> UsageError:
    """The first thing that pydantic found, in our words."""
    found = error.errors()[0]
    key = str(found["loc"][0]).removesuffix("_field")
    if found["type"] == "missing":
        return UsageError(f"{path}: the key {key} is missing")
    shown = json.dumps(values[key] if key == "fields" else found["input"], default=str)[:60]
    if key == "fields":
        return _wrong(path, key, f"{shown} is no mapping of names to names")
    match found["type"]:
        case "literal_error":
            return _wrong(path, key, f"{found['input']!r} is not understood", "fixed or per_row")
        case "bool_type":
            return _wrong(path, key, f"{shown} is neither true nor false")
        case "int_type" | "greater_than_equal":
            return _wrong(path, key, f"{shown} is no whole number above 0")
        case "tuple_type" | "too_short":
            return _wrong(path, key, f"{shown} is no list of texts")
    return _wrong(path, key, f"{shown} is no text", "a text; quotes make one of anything")


def _wrong(path: Path, key: str, what: str, need: str = "") -> UsageError:
    return UsageError(f"{path}: {key}: {what}", need=need)
