from __future__ import annotations

import pytest

from autoscaler import starts


def test_the_time_to_ready_is_learned_from_the_counts():
    known, now = starts.Starts(), 0.0
    for _ in range(6):
        for second in range(40):
            now += 1.0
            known = starts.observe(known, 1 if second < 25 else 2, 1 if second < 25 else 0, now)
        known = starts.observe(known, 1, 0, now)

    assert known.mean_s == pytest.approx(25.0, abs=1.0)
    assert starts.expected_s(known, None) == pytest.approx(25.0, abs=2.0)


def test_what_is_told_comes_first_and_nothing_known_is_a_usual_start():
    assert starts.expected_s(starts.Starts(), 7.0) == 7.0
    assert starts.expected_s(starts.Starts(), None) == starts.UNKNOWN_S


def test_a_start_that_is_given_up_teaches_nothing():
    known = starts.observe(starts.Starts(), 1, 1, 1.0)
    known = starts.observe(known, 1, 0, 50.0)

    assert known.mean_s is None
    assert known.pending == ()
