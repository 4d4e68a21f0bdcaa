"""Sweeps by hand against sweeps by formula."""

import pytest

from outsize.planner.sweep_time import Step, first_sweep_s, steady_sweep_s, sweeps_s


def resident(compute):
    return Step(0.0, compute, ring=False)


def streamed(read, compute):
    return Step(read, compute, ring=True)


def test_without_streaming_a_sweep_is_its_computing():
    assert steady_sweep_s([resident(1.0), resident(2.0)], 0) == 3.0
    assert steady_sweep_s([], 0) == 0


def test_the_slower_of_reading_and_computing_decides_when_both_are_spread_evenly():
    slow_disk = [resident(1.0), streamed(5.0, 1.0)] * 4
    assert steady_sweep_s(slow_disk, 2) == pytest.approx(20.0)
    slow_compute = [resident(3.0), streamed(2.0, 1.0)] * 4
    assert steady_sweep_s(slow_compute, 2) == pytest.approx(16.0)


def test_streamed_ones_side_by_side_hide_less():
    together = [resident(2.0)] * 4 + [streamed(2.0, 0.5)] * 4
    spread = [resident(2.0), streamed(2.0, 0.5)] * 4
    assert steady_sweep_s(spread, 2) < steady_sweep_s(together, 2)


def test_one_slot_reads_and_computes_by_turns():
    assert steady_sweep_s([streamed(2.0, 1.0)] * 3, 1) == pytest.approx(9.0)


def test_the_first_sweep_starts_to_compute_when_its_first_bytes_arrive():
    assert first_sweep_s([Step(2.0, 1.0, ring=False)] * 3, 2) == pytest.approx(7.0)
    # Two slots: the third read waits until the first has been computed, at 2 + 5.
    assert first_sweep_s([streamed(2.0, 5.0)] * 3, 2) == pytest.approx(17.0)


def test_sweeps_end_one_after_the_other():
    ends = sweeps_s([resident(1.0), streamed(1.0, 1.0)], 2, sweeps=3)
    assert ends == sorted(ends)
    assert len(ends) == 3
