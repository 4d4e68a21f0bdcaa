"""What is counted is what the model is given: transformers' own tokenizer, made once and kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli.datasets import DEMO

from outsize.errors import DamagedModel
from outsize.evals.token_counter import TokenCounter
from outsize.models.tracing import pretrained
from outsize.models.tracing.pretrained import load_tokenizer

TEXT = "the lamp <x> is on " * 20
FIXED = {"strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None}
PAD = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
BOTH = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [BOTH, {"Sequence": {"id": "A", "type_id": 0}}, BOTH],
    "pair": [],
    "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
}
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of tokenizer.json, of tokenizer_config.json
    "as it is": ({}, {}),
    "special tokens around every text": ({"post_processor": TEMPLATE}, {}),
    "truncated": ({"truncation": TRUNCATION}, {}),
    "padded": ({"padding": {**FIXED, **PAD}}, {}),
    "one more special token": ({}, {"extra_special_tokens": ["<x>"]}),
    "special tokens that are split": ({}, {"extra_special_tokens": ["<x>"], "split_special_tokens": True}),
    "a class with a template of its own": ({}, {"tokenizer_class": "RobertaTokenizer"}),
}


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for name, changes in zip(("tokenizer.json", "tokenizer_config.json"), FOLDERS[request.param], strict=True):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))
    return folder


def test_counts_are_those_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(folder)
    want = tokenizer(TEXT)["input_ids"]
    for _ in range(2):  # made, then kept
        counter = TokenCounter(folder)
        assert counter.encode(TEXT) == want
        assert counter.count(TEXT) == len(want)
        assert counter.encode(TEXT, add_special_tokens=False) == tokenizer.encode(TEXT, add_special_tokens=False)
        assert (counter.bos_token_id, counter.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert counter.decode(want) == tokenizer.decode(want)
        if not tokenizer.split_special_tokens:  # which only transformers knows
            monkeypatch.setattr(pretrained, "load_tokenizer", None)


def test_another_file_is_another_tokenizer(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    few = TokenCounter(folder).count(TEXT)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": TEMPLATE}))
    assert TokenCounter(folder).count(TEXT) == few + 2


def test_numbers_of_tokens_beyond_all_reason_are_not_written_down(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"] = {text: token + 4_000_000_000 for text, token in whole["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    counter = TokenCounter(folder)  # or takes 5 GB and minutes
    assert counter._kept is None
    assert counter.count("the lamp") == 8


def test_a_tokenizer_that_panics(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": {**TEMPLATE, "special_tokens": {}}}))
    with pytest.raises(DamagedModel, match="tokenizer"):
        TokenCounter(folder).count(TEXT)
