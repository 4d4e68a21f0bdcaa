"""Whether the kernels are there, by their file."""

from __future__ import annotations

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
