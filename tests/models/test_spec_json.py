"""Specs to JSON and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint

from outsize.errors import OutsizeError
from outsize.models.files.folder import open_folder
from outsize.models.resolve import shipped_spec
from outsize.models.spec import ModelSpec
from outsize.models.spec_json import SCHEMA, spec_from_json, spec_to_json
from outsize.models.survey_cache import folder_spec


def shipped(name: str) -> ModelSpec:
    spec = shipped_spec(name)
    assert spec is not None
    return spec


@pytest.mark.parametrize("name", ["t5-3b", "bigscience/bloom", "EleutherAI/gpt-j-6B"])
def test_there_and_back(name: str) -> None:
    spec = shipped(name)
    assert spec_from_json(spec_to_json(spec)) == spec


@pytest.mark.parametrize("name", ["gemma2", "marian", "phi3", "opt-350m"])
def test_there_and_back_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    """With origins, windows, and weights tied across modules."""
    spec = folder_spec(open_folder(write_checkpoint(tmp_path, ARCHITECTURES[name].make_model())))
    assert spec_from_json(spec_to_json(spec)) == spec


def test_blocks_that_differ_in_their_name_alone_share_one_entry() -> None:
    spec = shipped("bigscience/bloom")
    entries = json.loads(spec_to_json(spec))["modules"]
    assert len(spec.modules) > 70
    assert len(entries) < 10
    assert max(len(entry["names"]) for entry in entries) == 70


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 0}', f'{{"schema": {SCHEMA}}}', f'{{"schema": {SCHEMA}, "id": "x"}}']
)
def test_what_is_no_spec(text: str) -> None:
    with pytest.raises(OutsizeError, match="no model spec"):
        spec_from_json(text)
