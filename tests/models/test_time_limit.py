from __future__ import annotations

import itertools

import pytest

from outsize.errors import DamagedModel
from outsize.models.time_limit import time_limit


def late() -> DamagedModel:
    return DamagedModel("too late")


def endless() -> None:
    for _ in itertools.count():
        try:
            pass
        except Exception:  # noqa: BLE001  as libraries do
            continue


def test_what_never_ends_is_ended() -> None:
    with pytest.raises(DamagedModel, match="too late"), time_limit(0.05, late):
        endless()


def test_what_ends_in_time_is_left_alone() -> None:
    for _ in range(50):
        with time_limit(60, late):
            pass


def test_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), time_limit(60, late):
        raise ValueError("mine")


def test_the_very_end_is_no_leak() -> None:
    """Whether it comes just before or after the end, nothing is raised later."""
    for _ in range(200):
        try:
            with time_limit(0.0005, late):
                sum(range(20_000))
        except DamagedModel:
            pass
    sum(range(1_000_000))
