"""What every test of a running model gets."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch twins, which give transformers' own bits; test_kernels.py is about the compiled kernels."""
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")


@pytest.fixture(autouse=True)
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few KB are streamed in parts, and single tensors of them kept, as those of a few hundred MB are."""
    monkeypatch.setattr("outsize.facts.architecture.parts.LEAST_BYTES", 0)
    monkeypatch.setattr("outsize.planning.keeping.LEAST_BYTES", 1)
