"""Whether the kernels and Triton are there, by their files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outsize.machine import compiled


def test_a_file_beside_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "KERNELS", tmp_path)
    assert not compiled.are_kernels_compiled({})
    assert compiled.are_kernels_compiled({"OUTSIZE_KERNELS_LIBRARY": "/elsewhere/kernels.so"})
    (tmp_path / "_kernels.cpython-311-x86_64-linux-gnu.so").touch()
    assert compiled.are_kernels_compiled({"OUTSIZE_KERNELS": "avx2"})
    assert not compiled.are_kernels_compiled({"OUTSIZE_KERNELS": "torch"})


def test_they_are_looked_for_where_they_are_built() -> None:
    from outsize.kernels.cpu import build

    assert compiled.KERNELS == build.HERE
    assert build.file_name().startswith("_kernels")


def test_triton_counts_as_there_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert not compiled.is_triton_installed()
    (tmp_path / "triton.py").write_text("raise ImportError")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert compiled.is_triton_installed()
