"""What every test gets: a cache folder of its own, and no network beyond this host."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRATCH = pytest.StashKey[Path]()
LOOPBACK = ("127.", "::1", "localhost")


def pytest_configure(config: pytest.Config) -> None:
    """Point every cache at a temporary folder before any library reads its environment (most do so at import)."""
    scratch = Path(tempfile.mkdtemp(prefix="outsize-tests-"))
    config.stash[SCRATCH] = scratch
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "OUTSIZE_EMULATE_GPUS"):
        os.environ.pop(name, None)
    os.environ["HF_HOME"] = str(scratch / "huggingface")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["OUTSIZE_CACHE"] = str(scratch / "outsize")
    # Models this small are not worth sharing out, and threads that wait for each other spin, on cores that other tests
    # use too: commands of 2 s took 25. Tests of threads ask for some.
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary folder."""
    shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing kept by one test is seen by another."""
    cache = request.config.stash[SCRATCH] / "caches" / tmp_path.name
    monkeypatch.setenv("OUTSIZE_CACHE", str(cache))
    return cache


@pytest.fixture
def shared_surveys(own_cache: Path, request: pytest.FixtureRequest) -> None:
    """But for surveys, of half a second each and the same whoever makes them, which the tests of a folder share."""
    specs = request.config.stash[SCRATCH] / "specs" / request.path.parent.name
    specs.mkdir(parents=True, exist_ok=True)
    own_cache.mkdir(parents=True)
    (own_cache / "specs").symlink_to(specs)


@pytest.fixture(autouse=True)
def this_host_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that talks to another host without the ``network`` marker."""
    if request.node.get_closest_marker("network"):
        yield
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            pytest.fail(f"a test without the network marker connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
