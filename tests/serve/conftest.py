"""A real server with the bundled model, for all tests of this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_models import chat_model

LIMITS = ["--no-gpu", "--weight-limit", "ram=1MiB", "--context", "256", "--name", "demo"]


@contextmanager
def serving(folder: Path, cache: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of ``outsize serve``, and its process."""
    command = [sys.executable, "-m", "outsize", "serve", str(folder), "--port", "0", "--json", *LIMITS, *more]
    env = {**os.environ, "OUTSIZE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            yield json.loads(line)["url"], process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, with a template, and a decoder that llguidance knows."""
    folder = chat_model(tmp_path_factory.mktemp("serve") / "model")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    file.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="session")
def server(chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server."""
    with serving(chat_folder, tmp_path_factory.mktemp("cache")) as (url, _):
        yield url
