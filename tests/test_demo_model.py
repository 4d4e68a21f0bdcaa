"""The bundled model: small, standard, and right on prompts that its training cannot have seen."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "outsize" / "demo_model"
EXAMPLES = sorted((ROOT / "examples" / "fewshot").glob("*.txt"))
SAMPLE = 96  # prompts, six of each task


@cache
def tasks() -> ModuleType:
    """`scripts/fewshot_tasks.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("fewshot_tasks", ROOT / "scripts" / "fewshot_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def held_out() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MODEL / "heldout.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()


def answers(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """What greedy decoding says after each prompt, up to and with the newline."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(**batch, max_new_tokens=20)
    return list(tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def test_size() -> None:
    weights = (MODEL / "model.safetensors").stat().st_size
    assert weights <= 6.5e6
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) <= 8e6


def test_is_a_standard_llama_of_eight_blocks_in_bfloat16(model: Any) -> None:
    import torch
    from transformers import LlamaForCausalLM

    assert type(model) is LlamaForCausalLM
    assert model.config.num_hidden_layers == 8
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    stored = json.loads((MODEL / "config.json").read_text())
    assert stored["dtype"] == "bfloat16"
    assert "auto_map" not in stored


def test_tokenizer_keeps_every_character(tokenizer: Any) -> None:
    texts = ["cat -> CAT\nhouse -> HOUSE\nbird ->", "  two  spaces\n\n- > ->-> ", "".join(map(chr, range(32, 127)))]
    for text in [*texts, *(record["prompt"] + record["answer"] for record in held_out())]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("a -> B\n")["input_ids"] == tokenizer.convert_tokens_to_ids(["a", " ", "->", " ", "B", "\n"])
    assert tokenizer.convert_tokens_to_ids("é") == tokenizer.unk_token_id


def test_held_out_prompts_follow_from_the_script() -> None:
    drawn = list(tasks().held_out_prompts(seed=20, per_task=25))
    assert [(record["prompt"], record["answer"], record["task"], record["shots"]) for record in held_out()] == [
        (prompt.text, prompt.answer, prompt.task, prompt.shots) for prompt in drawn
    ]
    assert {record["task"] for record in held_out()} == {task.name for task in tasks().TASKS}


def test_training_never_sees_what_is_held_out() -> None:
    random, closed = Random(7), {task.name for task in tasks().TASKS if task.closed}
    asked = {record["prompt"] for record in held_out()}
    for _ in range(2000):
        prompt = tasks().training_prompt(random, 96)
        if prompt.task not in closed:
            assert not any(tasks().word_is_held_out(line.split(" ->")[0]) for line in prompt.lines)
        solved = prompt.text + prompt.answer
        assert not any(solved.startswith(text) for text in asked)


def test_answers_held_out_prompts(model: Any, tokenizer: Any) -> None:
    sample = held_out()[:SAMPLE]
    said = answers(model, tokenizer, [record["prompt"] for record in sample])
    wrong = [(record["prompt"], text) for record, text in zip(sample, said, strict=True) if text != record["answer"]]
    assert len(wrong) <= 0.05 * SAMPLE, wrong


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_answers_the_examples(path: Path, model: Any, tokenizer: Any) -> None:
    """Each example's last line is open; its task is the file's name, and its word was never seen."""
    prompt = path.read_text().removesuffix("\n")
    item = prompt.splitlines()[-1].removesuffix(" ->")
    task = next(task for task in tasks().TASKS if task.name == path.stem)
    assert task.closed or tasks().word_is_held_out(item)
    assert answers(model, tokenizer, [prompt]) == [f" {task.answer(item)}\n"]
