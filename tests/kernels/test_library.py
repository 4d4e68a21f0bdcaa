from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernels.packed_weights import packed_weight
from torch.nn import functional

from outsize.cli.command_doctor import kernels_in_use
from outsize.errors import UsageError
from outsize.kernels.cpu import build as compiling
from outsize.kernels.cpu import library
from outsize.kernels.cpu.library import NoLibrary, describe, forget, kernels, load
from outsize.kernels.dispatch import linear
from outsize.models.formats import Packing


def have_library() -> bool:
    try:
        load()
    except NoLibrary:
        return False
    return True


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    forget()
    yield
    forget()


compiled = pytest.mark.skipif(not have_library(), reason="the kernels were not compiled")


@pytest.mark.usefixtures("nothing_loaded")
def test_the_library_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "HERE", tmp_path)
    monkeypatch.delenv("OUTSIZE_KERNELS_LIBRARY", raising=False)
    assert kernels() is None
    weight = packed_weight(Packing(4, 128, words=True, scale="float32"), 6, 256)
    x = torch.randn(2, 256)
    assert torch.equal(linear(x, weight), functional.linear(x, weight.whole()))
    check = kernels_in_use()
    assert check.state == "note"
    assert check.value == "torch: the kernels were not compiled"
    assert "outsize.kernels.cpu.build" in check.remedy
    monkeypatch.setenv("OUTSIZE_KERNELS", "avx2")
    with pytest.raises(UsageError, match="OUTSIZE_KERNELS=avx2, but the kernels were not compiled"):
        kernels()


@pytest.mark.usefixtures("nothing_loaded")
def test_a_library_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(UsageError, match="there is no such file"):
        kernels()


@pytest.mark.usefixtures("nothing_loaded")
def test_a_file_that_is_no_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broken.so"
    file.write_bytes(b"nothing")
    monkeypatch.setenv("OUTSIZE_KERNELS_LIBRARY", str(file))
    with pytest.raises(NoLibrary, match=r"broken\.so cannot be loaded"):
        load()


def test_an_unknown_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTSIZE_KERNELS", "sse9")
    with pytest.raises(UsageError, match="OUTSIZE_KERNELS=sse9 is not known"):
        kernels()
    assert kernels_in_use().state == "broken"


@compiled
def test_the_best_build_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUTSIZE_KERNELS", raising=False)
    chosen = kernels()
    assert chosen is not None
    assert chosen.name == load().builds[-1]
    assert describe()[0].startswith(chosen.name)
    assert kernels_in_use().state == "ok"
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")
    assert kernels() is None
    assert describe() == ("torch", "unset OUTSIZE_KERNELS")


@compiled
def test_torchs_threads_are_joined_and_no_second_openmp_is_loaded() -> None:
    program = (
        "import os, re, torch\n"
        "from outsize.kernels.cpu.library import load\n"
        "from outsize.kernels.dispatch import linear\n"
        "torch.set_num_threads(4)\n"
        "x, w = torch.ones(64, 512), torch.ones(4096, 512)\n"
        "x @ w.T\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "assert load().threads\n"
        "assert (linear(x[:1], w) == 512).all()\n"
        "assert len(os.listdir('/proc/self/task')) <= max(before, 4), 'threads of its own'\n"
        "maps = open('/proc/self/maps').read()\n"
        "files = set(re.findall(r'/\\S*(?:libgomp|libomp|libiomp)\\S*', maps))\n"
        "assert len(files) == 1, files\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_build_says_so_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setattr(sys, "argv", ["build", "--out", str(tmp_path / "library.so")])
    assert compiling.main() == 1
    assert "the kernels were not compiled" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
