"""The builds of the kernels that this machine can run; tests of the others are skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from outsize.kernels.cpu.library import BUILDS, NoLibrary, load


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Three threads, whatever the machine: work is shared out, and unevenly."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each build in turn, forced."""
    try:
        runnable = load().builds
    except NoLibrary as error:
        pytest.skip(error.what)
    if request.param not in runnable:
        pytest.skip(f"this processor or library lacks {request.param}")
    monkeypatch.setenv("OUTSIZE_KERNELS", request.param)
    return str(request.param)
