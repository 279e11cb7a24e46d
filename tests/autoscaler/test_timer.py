from __future__ import annotations

from autoscaler import timer


def is_due(onsets, lead_s, now):
    known = timer.rhythm(onsets)
    return known is not None and timer.is_due(onsets[-1], known, lead_s, now)


def test_bursts_by_the_clock_are_expected_in_time():
    onsets = (0.0, 302.0, 598.0, 901.0)
    assert timer.rhythm(onsets) is not None

    assert not is_due(onsets, 20.0, 1100.0)
    assert is_due(onsets, 20.0, 1180.0)
    assert is_due(onsets, 20.0, 1201.0)
    assert not is_due(onsets, 20.0, 1230.0)


def test_a_burst_left_out_does_not_end_it():
    assert is_due((0.0, 300.0, 600.0, 900.0), 20.0, 1490.0)


def test_one_interval_is_tried_and_a_second_that_differs_gives_it_up():
    assert is_due((0.0, 300.0), 20.0, 580.0)
    assert not is_due((0.0, 300.0), 20.0, 450.0)
    assert timer.rhythm((0.0, 300.0, 700.0)) is None


def test_bursts_at_any_time_are_no_timer():
    assert timer.rhythm((0.0, 100.0, 500.0, 560.0, 1200.0)) is None
    assert not is_due((0.0, 100.0, 500.0, 560.0, 1200.0), 20.0, 1400.0)
