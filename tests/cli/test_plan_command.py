"""``outsize plan`` from its arguments to its text, JSON and pictures."""

import json
import shutil
import subprocess
import sys

import pytest
from cli.datasets import DEMO, batch_lines, score_lines, write_lines

from outsize.cli import command_plan, main

TITANS = ["--machine", "2x-titan-rtx"]
SMALL = ["--machine", "ram=2GiB,disk=1TiB@3GB/s"]
MODELS = {
    "t5-3b": (2_851_598_336, 48),
    "EleutherAI/gpt-j-6B": (6_050_882_784, 28),
    "EleutherAI/gpt-neox-20b": (20_554_567_680, 44),
    "facebook/opt-30b": (29_974_540_288, 48),
    "facebook/opt-66b": (65_719_701_504, 64),
    "bigscience/bloom": (176_247_271_424, 70),
}


def answer(capsys, *argv, code=0):
    assert main.main(["plan", *argv]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("model", MODELS)
def test_every_shipped_model_is_planned(model, capsys):
    shown = json.loads(answer(capsys, model, *TITANS, "--json"))
    parameters, blocks = MODELS[model]
    assert (shown["model"]["parameters"], shown["model"]["blocks"]) == (parameters, blocks)
    assert [plan["weights"] for plan in shown["plans"]] == ["native", "int8", "int4"]
    assert shown["plans"][shown["best"]]["fits"]
    text = answer(capsys, model, *TITANS)
    assert model in text
    marked = next(line for line in text.splitlines() if line.startswith(">"))
    assert shown["plans"][shown["best"]]["weights"] in marked
    assert "~" in marked


def test_one_format_is_planned_alone(capsys):
    shown = json.loads(answer(capsys, "t5-3b", *TITANS, "--weights", "int8", "--json"))
    assert [plan["weights"] for plan in shown["plans"]] == ["int8"]
    assert shown["best"] == 0


def test_options_reach_the_plan(capsys):
    options = ["--context", "100", "--batch", "3", "--prompt", "50", "--ram", "8GiB", "--gpu-memory", "20GiB,10GiB"]
    limit = ["--weight-limit", "ram=1GiB,gpu1=0"]
    shown = json.loads(answer(capsys, "facebook/opt-30b", *TITANS, *options, *limit, "--json", "--weights", "native"))
    assert shown["request"] == {"context": 100, "batch": 3, "prompt": 50}
    devices = shown["plans"][0]["devices"]
    assert devices["ram"]["capacity_bytes"] == 8 * 1024**3
    assert devices["ram"]["weights_bytes"] <= 1024**3
    assert devices["gpu0"]["total_bytes"] <= 20 * 1024**3
    assert devices["gpu1"]["weights_bytes"] == 0
    shown = json.loads(answer(capsys, "facebook/opt-30b", *TITANS, "--gpu-memory", "9GiB", "--json"))
    assert shown["plans"][0]["devices"]["gpu1"]["capacity_bytes"] == 9 * 1024**3
    shown = json.loads(answer(capsys, "facebook/opt-30b", *TITANS, "--no-gpu", "--json"))
    assert [device["name"] for device in shown["machine"]["devices"]] == ["ram", "disk"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--gpu-memory", "1GiB,1GiB,1GiB"], "one size or 2"),
        (["--weight-limit", "gpu7=1GiB"], "gpu0, gpu1, ram"),
        (["--weight-limit", "ram"], "TIER=SIZE"),
        (["--weight-limit", "disk=0"], "gpu0, gpu1, ram"),
        (["--context", "0"], "at least 1"),
        (["--context", "4096"], "2048 positions"),
        (["--plot", "picture.pdf"], ".svg or .png"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, word, capsys):
    assert main.main(["plan", "facebook/opt-30b", *TITANS, *options]) == 2
    assert word in capsys.readouterr().err


def test_what_does_not_fit_is_still_shown_and_exits_3(capsys):
    text = answer(capsys, "facebook/opt-30b", *SMALL, code=3)
    assert text.count("no: lacks") == 3
    assert "more RAM would fit" in text
    assert not any(line.startswith(">") for line in text.splitlines())
    shown = json.loads(answer(capsys, "facebook/opt-30b", *SMALL, "--json", code=3))
    assert all(plan["shortfall_bytes"] > 0 for plan in shown["plans"])
    best = shown["plans"][shown["best"]]
    assert best["shortfall_bytes"] == min(plan["shortfall_bytes"] for plan in shown["plans"])


def test_explain_merges_blocks_and_gives_reasons(capsys):
    text = answer(capsys, "facebook/opt-66b", *TITANS, "--explain", "--weights", "native")
    assert "why, for native" in text
    assert "model.decoder.layers." in text
    assert "in every sweep" in text
    assert len(text.splitlines()) < 40


def test_names_are_merged_by_their_numbers():
    assert command_plan.merged(["a.0", "a.1", "a.3", "norm", "b.7"]) == ["a.0-1,3", "norm", "b.7"]
    experts = [f"layers.{i}.mlp.experts" for i in (1, 2, 3)]
    assert command_plan.merged(["layers.1", *experts, "layers.2"]) == ["layers.1-2", "layers.1-3.mlp.experts"]


def test_a_disk_too_full_for_the_download_is_mentioned(capsys, tmp_path):
    described = tmp_path / "full.json"
    devices = [
        {"kind": "ram", "capacity_bytes": "64GiB"},
        {"kind": "disk", "capacity_bytes": "1TiB", "free_bytes": "9GiB"},
    ]
    described.write_text(json.dumps({"name": "full", "devices": devices}))
    text = answer(capsys, "facebook/opt-30b", "--machine", str(described), "--weights", "native")
    assert "9.0 GiB free: not enough to download 55.8 GiB" in text


def test_no_colour_unless_on_a_terminal(capsys, monkeypatch):
    assert "\033" not in answer(capsys, "t5-3b", *TITANS)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "\033[" in answer(capsys, "t5-3b", *TITANS)


def test_a_million_parameters_are_not_a_billion():
    assert command_plan.billions(3_400_000) == "3.4 million"


def test_the_local_machine_is_the_default(capsys):
    text = answer(capsys, "t5-3b", "--no-gpu", "--context", "64", "--weights", "int4")
    assert "on local: ram" in text


def test_plan_loads_no_torch():
    program = (
        "import sys\n"
        "from outsize.cli.main import main\n"
        "code = main(['plan', 'bigscience/bloom', '--machine', '2x-titan-rtx', '--json'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["schema"] == 1


def test_a_dataset_is_planned_as_a_whole(capsys, tmp_path):
    data = write_lines(tmp_path / "d.jsonl", batch_lines(32))
    options = ["--no-gpu", "--weight-limit", "ram=0"]
    shown = json.loads(answer(capsys, str(DEMO), "--dataset", str(data), "--max-new-tokens", "12", *options, "--json"))
    tokens = sum(len(line["prompt"]) - line["prompt"].count("->") for line in batch_lines(32))  # the arrow is one
    assert shown["dataset"]["tokens"] == tokens
    assert (shown["dataset"]["sequences"], shown["dataset"]["new_tokens"]) == (32, 12)
    (native, *_) = shown["plans"]
    assert native["dataset"]["sweeps"] == 12
    assert native["dataset"]["micro_batches"] >= 1
    assert native["dataset"]["seconds"] > 0
    text = answer(capsys, str(DEMO), "--dataset", str(data), "--max-new-tokens", "12", *options)
    assert "the dataset: 32 sequences" in text
    assert "12 new tokens each" in text
    data = write_lines(tmp_path / "d.jsonl", [*score_lines(8), "nonsense\n"])
    shown = json.loads(answer(capsys, str(DEMO), "--dataset", str(data), *options, "--json", "--weights", "native"))
    assert shown["dataset"]["sequences"] == 16
    assert [plan["dataset"]["sweeps"] for plan in shown["plans"]] == [1]
    assert answer(capsys, str(DEMO), "--dataset", str(data), *options).count("scored") == 1


def test_a_dataset_has_the_tokens_that_the_model_is_given(capsys, tmp_path):
    folder = shutil.copytree(DEMO, tmp_path / "model")
    whole = json.loads((folder / "tokenizer.json").read_text())
    special = {"id": "<pad>", "type_id": 0}
    template = {
        "type": "TemplateProcessing",
        "pair": [],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}},
    }
    template["single"] = [{"SpecialToken": special}, {"Sequence": {"id": "A", "type_id": 0}}]
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": template}))
    data = write_lines(tmp_path / "d.jsonl", [{"prompt": "abc"}, {"context": "abc", "choices": ["de", "f"]}])
    shown = json.loads(answer(capsys, str(folder), "--dataset", str(data), "--weights", "native", "--json"))
    # One special token before each text; the last token of a choice is nobody's input.
    assert (shown["dataset"]["tokens"], shown["dataset"]["longest"]) == (4 + 5 + 4, 5)


def test_a_dataset_of_so_many_sequences(capsys):
    sequences = ["--sequences", "64", "--tokens", "100", "--max-new-tokens", "4", "--weights", "int4"]
    shown = json.loads(answer(capsys, "bigscience/bloom", *TITANS, *sequences, "--json"))
    (plan,) = shown["plans"]
    assert plan["dataset"]["sweeps"] >= 4
    assert plan["dataset"]["disk_bytes"] > 0
    one = json.loads(answer(capsys, "bigscience/bloom", *TITANS, *sequences, "--batch", "1", "--json"))
    assert one["request"]["batch"] == 1
    short = json.loads(answer(capsys, "t5-3b", *SMALL, *sequences, "--ram", "100MiB", "--json", code=3))
    assert short["plans"][0]["dataset"]["seconds"] == 0
    assert "-" in answer(capsys, "t5-3b", *SMALL, *sequences, "--ram", "100MiB", "--batch", "2", code=3)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--sequences", "5"], "--tokens"),
        (["--sequences", "5", "--tokens", "0"], "nothing to plan for"),
        (["--dataset", "none.jsonl"], "cannot be read"),
    ],
)
def test_datasets_that_make_no_sense(options, word, capsys):
    assert main.main(["plan", "t5-3b", *TITANS, *options]) == 2
    assert word in capsys.readouterr().err


def test_a_dataset_without_a_tokenizer_is_not_guessed(capsys, tmp_path):
    data = write_lines(tmp_path / "d.jsonl", batch_lines(2))
    assert main.main(["plan", "t5-3b", *TITANS, "--dataset", str(data)]) == 2
    assert "--sequences N" in capsys.readouterr().err


def test_what_if_the_machine_were_another(capsys):
    changes = "ram=128GiB,gpu=+24GiB,disk@7GB/s"
    text = answer(capsys, "facebook/opt-66b", *TITANS, "--what-if", changes)
    assert f"on 2x-titan-rtx with {changes}: gpu0 24.0 GiB" in text
    assert f"what if {changes}:" in text
    now = json.loads(answer(capsys, "facebook/opt-66b", *TITANS, "--json"))["plans"]
    then = json.loads(answer(capsys, "facebook/opt-66b", *TITANS, "--json", "--what-if", changes))
    assert [plan["predicted"] for plan in then["what_if"]["before"]] == [plan["predicted"] for plan in now]
    faster = [b["predicted"]["token_s"] / a["predicted"]["token_s"] for a, b in zip(now, then["plans"], strict=True)]
    assert max(faster) <= 1
    assert faster[0] < 0.5  # native spills less, and over a faster drive


def test_what_would_help(capsys):
    machine = ["--machine", "ram=16GiB,disk=2TiB@2GB/s"]
    text = answer(capsys, "facebook/opt-30b", *machine, "--weights", "native", "--advise")
    assert "what would help, for native:" in text
    assert "--what-if disk@7GB/s" in text
    shown = json.loads(answer(capsys, "facebook/opt-30b", *machine, "--weights", "native", "--advise", "--json"))
    assert all({"change", "options", "weights", "predicted"} == set(one) for one in shown["advice"])
    assert "nothing that is tried" in answer(
        capsys, "t5-3b", "--machine", "gpu=80GiB,ram=256GiB,disk=1TiB", "--advise", "--weights", "int4"
    )
