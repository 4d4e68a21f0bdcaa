from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.datasets import DEMO
from cli.harness_models import ROOT, TASKS, TEMPLATE, bundled

from outsize.cli import command_eval, eval_report
from outsize.cli.main import main
from outsize.evals.dataset_run import Effort
from outsize.evals.harness import tasks

pytestmark = pytest.mark.xdist_group("harness")  # one process, for lm_eval takes long to import

HERE = ["--include-path", str(TASKS), "--no-gpu", "--limit", "6"]


@pytest.fixture(scope="module", autouse=True)
def harness() -> Iterator[None]:
    """The harness' index of its own tasks takes long to read: here it has those of the examples only."""
    import datasets

    manager = tasks.TaskManager

    def small(include_path: Any, include_defaults: bool, metadata: Any) -> Any:
        return manager(include_path=include_path or [TASKS], include_defaults=False, metadata=metadata)

    datasets.disable_progress_bars()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(tasks, "TaskManager", small)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        patch.setattr("lm_eval.utils.setup_logging", lambda level: None)
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield
    torch.set_num_threads(threads)


def test_a_table_files_and_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ["--tasks", "words_[ac]*", "--weight-limit", "ram=0", "--out", str(out), "--log-samples"]
    assert main(["eval", str(DEMO), *asked, *HERE]) == 0
    said = capsys.readouterr()
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["task", "shots", "filter", "metric", "value", "stderr", "better"]
    assert [line[0] for line in lines[1:]] == ["words_answer", "words_choice", "none"]
    assert lines[1][:6] == ["words_answer", "0", "word", "exact_match", "1.0000", "0.0000"]
    took = json.loads(next(line for line in said.err.splitlines() if line.startswith("{")))
    assert took["sweeps"] > 2
    assert took["disk_bytes"] > 0
    assert took["predicted_seconds"] > 0
    assert took["requests"] == 6 + 3 * 6
    assert "predicted" in said.err
    (results,) = out.glob("results_*.json")
    kept = json.loads(results.read_text())
    assert kept["config"]["model_args"] == {"model": str(DEMO), "weights": "native"}
    assert kept["outsize"] == took
    samples = [json.loads(line) for line in next(out.glob("samples_words_answer_*")).read_text().splitlines()]
    assert [s["resps"] for s in samples] == [[[s["doc"]["answer"].rstrip("\n")]] for s in samples]
    assert samples[0]["arguments"]["gen_args_0"]["arg_0"] == samples[0]["doc"]["prompt"]


def test_one_object_and_no_word_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even of a task that prints; the second run finds the answers of the first."""
    loud = tmp_path / "loud"
    loud.mkdir()
    (loud / "loud.py").write_text("def process(docs):\n    print('loud')\n    return docs\n")
    text = (TASKS / "words_answer.yaml").read_text().replace("task: words_answer", "task: loud")
    (loud / "loud.yaml").write_text(text + "process_docs: !function loud.process\n")
    cache = ["--use-cache", str(tmp_path / "cache")]
    asked = ["eval", str(DEMO), "--tasks", str(loud / "loud.yaml"), "--no-gpu", "--limit", "3", "--json", *cache]
    found = []
    for gen in ("max_gen_toks=20", "max_gen_toks=20", "max_gen_toks=21"):
        assert main([*asked, "--gen-kwargs", gen]) == 0
        said = capsys.readouterr()
        assert "loud" in said.err
        found.append(json.loads(said.out))
    assert [(one["requests"], one["sweeps"] > 0) for one in found] == [(3, True), (0, False), (3, True)]
    for one in found:
        assert one["schema"] == 1
        assert one["results"]["loud"]["exact_match,word"] == 1.0
        assert one["n-samples"]["loud"] == {"original": 400, "effective": 3}
    assert len(list((tmp_path / "cache").glob("answers-*"))) == 1


def test_conversations_and_another_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundled(tmp_path / "model", chat_template=TEMPLATE)
    out = tmp_path / "out"
    chat = ["--apply-chat-template", "--no-fewshot-as-multiturn", "--system-instruction", "Be brief."]
    asked = ["--tasks", "words_guess", "--num-fewshot", "2", "--seed", "5", *chat, "--out", str(out), "--log-samples"]
    assert main(["eval", str(folder), *asked, *HERE, "--limit", "2"]) == 0
    sample = json.loads(next(out.glob("samples_*")).read_text().splitlines()[0])
    assert sample["arguments"]["gen_args_0"]["arg_0"].startswith("<system>Be brief.\n<user>")
    assert sample["arguments"]["gen_args_0"]["arg_0"].count("<user>") == 1
    assert json.loads(next(out.glob("results_*")).read_text())["config"]["fewshot_seed"] == 5
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["words_guess", "2"]


def test_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list"]) == 0
    names = ["words_answer", "words_choice", "words_guess", "words_text"]
    assert capsys.readouterr().out.split() == names
    assert main(["eval", "--list", "--tasks", "*e", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "tasks": ["words_choice"]}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ([], "MODEL and --tasks"),
        ([str(DEMO)], "MODEL and --tasks"),
        (["--tasks", "words_text"], "MODEL and --tasks"),
        ([str(DEMO), "--tasks", "words_chioce"], "near ones: words_choice"),
        ([str(DEMO), "--tasks", "words_text", "--log-samples"], "--out DIR"),
        ([str(DEMO), "--tasks", "words_text", "--limit", "0"], "above 0"),
        ([str(DEMO), "--tasks", "words_text", "--num-fewshot", "-1"], "below 0"),
        ([str(DEMO), "--tasks", "words_text", "--gen-kwargs", "temperature"], "NAME=VALUE"),
        ([str(DEMO), "--tasks", "words_text", "--fewshot-as-multiturn"], "--apply-chat-template"),
        ([str(DEMO), "--tasks", "words_text", "--apply-chat-template"], "no chat template"),
        ([str(DEMO), "--tasks", "words_text", "--include-path", "nowhere"], "no folder of tasks"),
        ([str(DEMO), "--tasks", "words_text", "--context", "999"], "1 to 256"),
        ([str(DEMO), "--tasks", "words_answer", "--gen-kwargs", "num_beams=2"], "num_beams=2"),
        ([str(DEMO), "--tasks", "words_answer", "--gen-kwargs", "do_sample=True"], "temperature"),
        ([str(DEMO), "--tasks", "words_answer", "--use-cache", "README.md"], "cannot be a folder"),
    ],
)
def test_usage(asked: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *asked]) == 2
    said = capsys.readouterr()
    assert word in said.err
    assert said.out == ""


def test_tasks_that_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (TASKS / "words_text.yaml").read_text()
    (tmp_path / "a.yaml").write_text(text.replace("src/outsize/demo_model", "nowhere"))
    assert main(["eval", str(DEMO), "--tasks", str(tmp_path / "a.yaml")]) == 1
    assert "the harness cannot load" in capsys.readouterr().err


def test_tasks_that_run_code_want_to_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text((TASKS / "words_text.yaml").read_text() + "unsafe_code: true\n")
    asked = ["eval", str(DEMO), "--tasks", str(tmp_path / "a.yaml"), *HERE]
    assert main(asked) == 1
    assert "the harness cannot go on: ValueError: Attempted to run task" in capsys.readouterr().err
    assert main([*asked, "--confirm-run-unsafe-code", "--bootstrap", "0"]) == 0


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # what find_spec takes for missing
    assert main(["eval", str(DEMO), "--tasks", "words_text"]) == 2
    assert "pip install 'outsize[eval]'" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_printed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Model:
        effort = Effort(sweeps=1)

    (tmp_path / "file").write_text("")
    found: dict[str, Any] = {"results": {"a": {"acc,none": float("nan"), "n": 1}}, "config": {}}
    monkeypatch.setattr(command_eval, "_evaluate", lambda args: (found, Model()))
    assert main(["eval", str(DEMO), "--tasks", "a", "--out", str(tmp_path / "file"), "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["results"]["a"] == {"acc,none": None, "n": 1}
    assert "cannot be written" in said.err


def test_groups_stand_before_what_they_hold() -> None:
    results = {
        "results": {
            "b": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
            "a": {"alias": "first", "acc,none": 2e6, "acc_stderr,none": 0.25},
            "g": {"acc,none": 0.75},
        },
        "group_subtasks": {"all": ["g", "b"], "g": ["a"]},
        "n-shot": {"a": 5},
        "higher_is_better": {"a": {"acc": False}},
    }
    assert [line.split() for line in eval_report.table(results).splitlines()[1:]] == [
        ["b", "none", "acc", "0.5000"],
        ["g", "none", "acc", "0.7500"],
        ["first", "5", "none", "acc", "2e+06", "0.2500", "lower"],
    ]
    assert eval_report.table(results).splitlines()[3].startswith("    first")
