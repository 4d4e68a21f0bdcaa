"""The builds of the kernels that this machine can run; tests of the others are skipped."""

from __future__ import annotations

import pytest

from outsize.kernels.library import BUILDS, NoLibrary, load


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
