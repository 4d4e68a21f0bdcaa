"""Whatever goes wrong ends in one line and an exit code, never in a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkpoints import ARCHITECTURES, write_checkpoint
from cli.datasets import DEMO, write_lines
from cli.harness_models import bundled, change, poisoned

from outsize.cli import command_plan, edge
from outsize.cli.main import main
from outsize.errors import DoesNotFit, OutsizeError
from outsize.evals import dataset_run

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    return folder


def one_line(code: int, capsys: Captured, exit_code: int | None = None) -> str:
    """The line, once it is sure that it is the only one of ours, and the last."""
    err = capsys.readouterr().err
    assert code in (1, 2, 3, 4) if exit_code is None else code == exit_code, err
    assert "Traceback" not in err
    assert sum(line.startswith("outsize: ") for line in err.splitlines()) == 1, err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "flash_attention_2"},
        {"pad_token_id": 3000},
        {"dtype": "float8_e4m3fn"},
        {"hidden_size": "many"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
        {"rope_parameters": 7},
        {"vocab_size": None},
        {"model_type": ["llama"]},
        {"torch_dtype": "no such type", "dtype": "no such type"},
    ],
    ids=str,
)
def test_configurations_of_wrong_values(folder: Path, changes: Mapping[str, Any], capsys: Captured) -> None:
    change(folder / "config.json", changes)
    code = main(["plan", str(folder)])
    if code:
        one_line(code, capsys)


@pytest.mark.parametrize(
    "settings",
    [
        "[]",
        '{"a":',
        '{"eos_token_id": "x", "max_length": -4}',
        '{"eos_token_id": [1000000000000000000000000000000]}',
        '{"bad_words_ids": [[1000000000]]}',
        '{"repetition_penalty": 0.0}',
        '{"cache_implementation": "evil"}',
        '{"watermarking_config": {"greenlist_ratio": 5}}',
    ],
)
def test_generation_settings_that_make_no_sense(folder: Path, settings: str, capsys: Captured) -> None:
    (folder / "generation_config.json").write_text(settings)
    one_line(main(["run", str(folder), "a", "--max-new-tokens", "2"]), capsys)


@pytest.mark.parametrize(
    "settings",
    [
        "",
        '{"return_dict_in_generate": true, "output_scores": true, "output_hidden_states": true}',
        '{"num_return_sequences": 3, "do_sample": true}',
        '{"stop_strings": ["zz"]}',
    ],
)
def test_generation_settings_that_change_no_answer(folder: Path, settings: str, capsys: Captured) -> None:
    """One text comes of one prompt, the same from both commands."""
    (folder / "generation_config.json").write_text(settings)
    data = folder / "data.jsonl"
    data.write_text('{"prompt": "dish -> DISH\\njift ->"}\n')
    prompt = "dish -> DISH\njift ->"
    assert main(["run", str(folder), prompt, "--max-new-tokens", "4", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main(["batch", str(folder), str(data), "--max-new-tokens", "4"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"] == text


def test_a_stop_string_of_the_settings_ends_both_commands(folder: Path, capsys: Captured) -> None:
    (folder / "generation_config.json").write_text('{"stop_strings": ["I"]}')
    data = folder / "data.jsonl"
    prompt = "dish -> DISH\nmojanago -> MOJANAGO\njift ->"
    data.write_text(json.dumps({"prompt": prompt}) + "\n")
    assert main(["run", str(folder), prompt, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].strip() == "JI"
    assert main(["batch", str(folder), str(data)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text"].strip() == "JI"


@pytest.mark.parametrize("more", [(), ("--beams", "3"), ("--temperature", "1")], ids=str)
def test_logits_that_are_no_numbers_name_their_layer(tmp_path: Path, more: tuple[str, ...], capsys: Captured) -> None:
    folder = poisoned(tmp_path / "model", token=20)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    letter = next(text for text, token in tokens.items() if token == 20)
    code = main(["run", str(folder), letter, "--max-new-tokens", "2", *more])
    assert "not finite, first in model.embed_tokens" in one_line(code, capsys, 1)


def test_a_batch_whose_every_row_fails(tmp_path: Path, capsys: Captured) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('[{"prompt": "a"}]\n')
    assert main(["batch", str(DEMO), str(data)]) == 1
    assert "error" in capsys.readouterr().out


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A model with 128 learned positions."""
    folder = bundled(tmp_path / "short")
    for file in folder.glob("model*"):
        file.unlink()
    write_checkpoint(folder, ARCHITECTURES["opt"].make_model())
    return folder


def test_more_tokens_than_positions(short: Path, capsys: Captured) -> None:
    assert "need at most 128" in one_line(main(["run", str(short), "a" * 200]), capsys, 2)
    code = main(["run", str(short), "a" * 100, "--max-new-tokens", "64"])
    assert "--max-new-tokens 29" in one_line(code, capsys, 2)
    assert main(["run", str(short), "a" * 100, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_tokens"] <= 29


def test_datasets_of_more_tokens_than_positions(
    short: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "a" * 100}])
    assert main(["batch", str(short), str(data)]) == 0  # the default shrinks
    assert json.loads(capsys.readouterr().out)["new_tokens"] <= 29
    monkeypatch.setattr(dataset_run, "open_model", None)  # what does not fit is refused before the load
    said = one_line(main(["batch", str(short), str(data), "--max-new-tokens", "64"]), capsys, 1)
    assert "128 positions: at most 29 new ones fit" in said
    for row in ({"prompt": "a" * 129}, {"context": "a" * 120, "choices": ["b" * 10]}):
        data = write_lines(tmp_path / "d.jsonl", [row])
        command = "batch" if "prompt" in row else "score"
        assert "129 tokens are more than" in one_line(main([command, str(short), str(data)]), capsys, 1)


@pytest.mark.parametrize(
    "option",
    [("--top-k", "-1"), ("--top-p", "2"), ("--seed", str(2**70)), ("--temperature", "nan"), ("--temperature", "inf")],
)
def test_sampling_parameters(option: tuple[str, str], capsys: Captured) -> None:
    temperature = () if option[0] == "--temperature" else ("--temperature", "1")
    one_line(main(["run", str(DEMO), "a", *temperature, *option]), capsys, 2)


def test_tokens_that_the_model_does_not_have(folder: Path, capsys: Captured) -> None:
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["vocab"] = {text: token + 500 for text, token in whole["model"]["vocab"].items()}
    path.write_text(json.dumps({**whole, "added_tokens": []}))
    assert "does not have" in one_line(main(["run", str(folder), "a"]), capsys, 4)


def test_a_tokenizer_that_panics(folder: Path, capsys: Captured) -> None:
    path = folder / "tokenizer.json"
    single = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": template}))
    one_line(main(["run", str(folder), "a"]), capsys)


def test_conversion_into_the_folder_that_one_is_in(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert main(["convert", str(DEMO), "--weights", "int4", "--out", "."]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "new"]) == 0
    capsys.readouterr()
    one_line(main(["convert", str(DEMO), "--weights", "int4", "--out", "/"]), capsys, 2)


# --- what nobody foresaw ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.EIO, "Input/output error", "/disk/x"), 1, "/disk/x: Input/output error; try: check that disk"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 1, "a: Permission denied; try: check the perm"),
        (OSError("no number"), 1, "no number"),
        (MemoryError(), 3, "memory is full"),
        (RecursionError("deep"), 1, "nested"),
        (ZeroDivisionError("by\nzero"), 1, "unforeseen: ZeroDivisionError: by zero; try: OUTSIZE_DEBUG=1"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), 1, "decode"),
        (type("PanicException", (BaseException,), {})("panicked"), 1, "panicked"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 3, "GPU memory"),
    ],
)
def test_any_error(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(command_plan, "run", fail)
    assert says in one_line(main(["plan", "t5-3b"]), capsys, code)
    monkeypatch.setenv(edge.DEBUG, "1")
    assert main(["plan", "t5-3b"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_errors_of_ours_stay_as_they_are() -> None:
    error = DoesNotFit("no")
    assert edge.translate(error) is error
    assert type(edge.translate(OSError(errno.ENOSPC, "full"))) is OutsizeError


def test_empty_variables_count_as_unset(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for name in ("OUTSIZE_KERNELS", "OUTSIZE_EMULATE_GPUS", "OUTSIZE_DEBUG", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")
    assert main(["plan", str(DEMO)]) == 0
    assert "HF_ENDPOINT" not in os.environ


PLAN = [sys.executable, "-m", "outsize", "plan", "t5-3b", "--machine", "2x-titan-rtx"]


def close(*descriptors: int) -> Callable[[], None]:
    return lambda: [os.close(one) for one in descriptors] and None


@pytest.mark.parametrize(
    ("closed", "code"),
    [((0,), 0), ((1,), 1), ((2,), 0), ((0, 2), 0), ((0, 1, 2), 1)],
    ids=["in", "out", "err", "02", "all"],
)
def test_closed_streams(closed: tuple[int, ...], code: int) -> None:
    done = subprocess.run(PLAN, capture_output=True, text=True, check=False, preexec_fn=close(*closed))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [PLAN, [*PLAN[:3], "--help"]], ids=["plan", "help"])
def test_a_full_standard_output(argv: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_a_terminal_that_is_not_utf_8() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "import sys, outsize.cli.edge as e; e.open_streams(); print('é\\ud800')"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\\xe9\\ud800\n")
