"""What every test of a running model gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def calm() -> Iterator[None]:
    """No progress bars of transformers' own loads; one thread, for models too small to share out."""
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.enable_progress_bar()


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch twins, which give transformers' own bits; test_kernels.py is about the compiled kernels."""
    monkeypatch.setenv("OUTSIZE_KERNELS", "torch")


@pytest.fixture(autouse=True)
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few KB are streamed in parts, and single tensors of them kept, as those of a few hundred MB are."""
    monkeypatch.setattr("outsize.facts.architecture.parts.LEAST_BYTES", 0)
    monkeypatch.setattr("outsize.planning.keeping.LEAST_BYTES", 1)
