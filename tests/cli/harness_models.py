"""Models and tasks for the harness: the bundled one in float32, small random ones with its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import ARCHITECTURES, write_checkpoint
from cli.datasets import DEMO
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "examples" / "harness"
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def bundled(folder: Path, **tokenizer: Any) -> Path:
    """The bundled model in float32. Its tokenizer ends texts with a newline, as the model does."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = {name: tensor.float() for name, tensor in load_file(DEMO / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", {"dtype": "float32"})
    change(folder / "tokenizer_config.json", {"eos_token": "\n", **tokenizer})
    return folder


def small(folder: Path, architecture: str) -> Path:
    """A random model with the bundled tokenizer."""
    write_checkpoint(folder, ARCHITECTURES[architecture].make_model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    change(folder / "tokenizer_config.json", {"eos_token": "\n"})
    return folder


def poisoned(folder: Path, token: int) -> Path:
    """The bundled model, whose every text with this token comes to no numbers."""
    bundled(folder)
    state = load_file(folder / "model.safetensors")
    state["model.embed_tokens.weight"][token] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
