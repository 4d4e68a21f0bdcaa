"""What tests of what is read get."""

from __future__ import annotations

import pytest

from outsize.store import chunk_readers


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_readers, "CHUNK", 4096)
