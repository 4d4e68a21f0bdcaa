"""How threads wait, by what runs besides."""

from __future__ import annotations

import pytest

from outsize.threads import POLICY, choose_wait_policy


def running(*counts: int):
    """What /proc/loadavg says at one look after the other."""
    looks = iter(counts)
    return lambda: f"0.50 0.40 0.30 {next(looks)}/300 4242\n"


@pytest.mark.parametrize(
    ("counts", "passive"), [((2, 3, 2), True), ((1,), False), ((2, 1), False), ((4, 4, 1), False), ((2, 2, 2), True)]
)
def test_threads_sleep_where_others_compute_all_the_time(counts: tuple[int, ...], passive: bool) -> None:
    environ: dict[str, str] = {}
    choose_wait_policy(environ, running(*counts))
    assert environ == ({POLICY: "PASSIVE"} if passive else {})


@pytest.mark.parametrize("given", [{POLICY: "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_somebody_said_stands(given: dict[str, str]) -> None:
    environ = dict(given)
    choose_wait_policy(environ, running(9, 9, 9))
    assert environ == given


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3 x/y 5"])
def test_a_system_that_does_not_say(text: str) -> None:
    environ: dict[str, str] = {}
    choose_wait_policy(environ, lambda: text)
    assert environ == {}

    def gone() -> str:
        raise FileNotFoundError

    choose_wait_policy(environ, gone)
    assert environ == {}
