"""Code in a model's folder is never run, whatever names it and whatever is answered on standard input."""

from __future__ import annotations

import ast
import builtins
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.datasets import DEMO

import outsize
from outsize.cli.main import main
from outsize.errors import OutsizeError
from outsize.models.tracing import pretrained

CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("code was run")
import transformers
class Evil(transformers.PreTrainedTokenizerFast): pass
"""
AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
AUTO_MAPS = (
    {**dict.fromkeys(AUTO, "evil.Evil"), "AutoTokenizer": [None, "evil.Evil"]},
    ["evil.Evil", None],
    "evil.Evil",
)
SETTINGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The bundled model with code at every place where transformers or Python would look for it."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder)
    code = CODE.format(mark=str(tmp_path / "mark"))
    places = "evil.py sitecustomize.py custom_generate/generate.py tokenization_evil.py modeling_evil.py __init__.py"
    for name in places.split():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name in SETTINGS:
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        more = {
            "auto_map": getattr(request, "param", AUTO_MAPS[0]),
            "tokenizer_class": "Evil",
            "processor_class": "Evil",
        }
        path.write_text(json.dumps({**before, **more}))
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": "evil", "auto_map": "evil.Evil"}))
    return folder


@pytest.fixture
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question would be answered with yes, and fail the test."""

    def asked(*question: object) -> str:
        pytest.fail(f"asked: {question}")

    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))


COMMANDS = {
    "plan": ["plan"],
    "run": ["run", "the lamp", "--max-new-tokens", "1"],
    "score": ["score", "{data}"],
    "batch": ["batch", "{data}"],
    "convert": ["convert", "--weights", "int4", "--out", "{out}"],
    "eval": ["eval", "--tasks", "arc_easy", "--limit", "1"],
}


@pytest.mark.usefixtures("nobody_asks")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": 1, "prompt": "a", "context": "a", "choices": ["b"]}\n')
    name, *more = COMMANDS[command]
    code = main([name, str(folder), *(word.format(data=data, out=tmp_path / "out") for word in more)])
    said = capsys.readouterr()
    assert not (tmp_path / "mark").exists()
    assert code in (0, 1, 4), said.err
    assert "y/N" not in said.out + said.err


@pytest.mark.usefixtures("nobody_asks")
@pytest.mark.parametrize("folder", AUTO_MAPS, ids=["by class", "list", "text"], indirect=True)
@pytest.mark.parametrize("door", [pretrained.load_tokenizer, pretrained.load_processor])
def test_doors(folder: Path, tmp_path: Path, door: object) -> None:
    assert callable(door)
    with pytest.raises(OutsizeError, match=r"never run|that transformers can read"):
        door(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("nobody_asks")
def test_models_and_generation_settings(folder: Path, tmp_path: Path) -> None:
    pretrained.load_generation_config(folder)
    with outsize.load(folder, no_gpu=True):
        pass
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("nobody_asks")
def test_the_harness(folder: Path, tmp_path: Path) -> None:
    from outsize.evals.harness import OutsizeLM

    with pytest.raises(OutsizeError, match="never run"):
        OutsizeLM(str(folder), no_gpu=True)
    assert not (tmp_path / "mark").exists()


def test_yes_on_standard_input(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "outsize", "run", str(folder), "the lamp", "--max-new-tokens", "1", "--no-gpu"]
    done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, check=False)
    assert not (tmp_path / "mark").exists()
    assert done.returncode == 4
    assert done.stdout == ""
    assert "never run" in done.stderr.splitlines()[-1]


def test_files_pass_through_one_door() -> None:
    """Only ``pretrained`` calls from_pretrained on files; the door to models calls it on recorded tensors."""
    package = Path(outsize.__file__).parent
    calls = [
        (path.relative_to(package).as_posix(), ast.unparse(node.args[0]))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert calls == [("models/tracing/__init__.py", "None")]
