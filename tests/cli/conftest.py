"""What every test of a command gets."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def surveyed_once(shared_surveys: None) -> None:
    """Nearly all are about the bundled model."""
