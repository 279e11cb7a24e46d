from __future__ import annotations

import random

import pytest

from autoscaler import forecast


def feed(rates, horizon_s=30.0, history=None, now=0.0):
    """A history after one report a second, None a missing one."""
    history = history or forecast.begin(now)
    arrivals, covered_s = history.arrivals, history.covered
    for rate in rates:
        now += 1.0
        if rate is not None:
            arrivals, covered_s = arrivals + rate, covered_s + 1.0
        history = forecast.observe(history, arrivals, covered_s, horizon_s, now)
    return history, now


def test_a_steady_rate_is_forecast_as_it_is():
    history, now = feed([20.0] * 1800)

    coming = forecast.latest(history)
    assert coming is not None
    assert coming.middle == pytest.approx(20.0, rel=0.02)
    assert coming.high <= 23.0
    assert coming.due == pytest.approx(now + 30.0, abs=10.0)


def test_a_burst_every_five_minutes_is_seen_coming():
    cycle = [40.0] * 60 + [10.0] * 240
    history, _ = feed(cycle * 12 + cycle[:280])

    coming = forecast.latest(history)
    assert coming is not None
    assert coming.middle > 30.0, "the burst begins in 20 s"
    assert forecast.NAMES[history.best] == "what came every 5 min"


def test_between_the_bursts_none_is_expected():
    cycle = [40.0] * 60 + [10.0] * 240
    history, _ = feed(cycle * 12 + cycle[:170])

    coming = forecast.latest(history)
    assert coming is not None
    assert coming.middle < 20.0


def test_surprises_widen_the_high_forecast():
    calm, _ = feed([10.0] * 3000)
    rng = random.Random(1)
    wild, _ = feed([rate for _ in range(30) for rate in [10.0] * rng.randrange(50, 150) + [30.0] * 30])

    assert forecast.latest(wild).high - forecast.latest(wild).middle > 2 * (
        forecast.latest(calm).high - forecast.latest(calm).middle
    )


def test_missing_reports_are_no_silence():
    history, now = feed([20.0] * 600)
    history, _ = feed([None] * 300, history=history, now=now)

    assert forecast.latest(history).middle == pytest.approx(20.0, rel=0.05)


@pytest.mark.parametrize("seconds", [13_000, 15_000, 18_000])
def test_three_hours_are_kept_and_no_more_than_four(seconds):
    history, _ = feed([5.0] * seconds)

    assert 8 * 1081 <= len(history.sums) <= 8 * 1441
    assert len(history.open) <= 10
    assert len(history.issued) <= 10


def test_a_second_after_a_gap_does_not_stand_for_the_gap():
    history, now = feed([20.0] * 600)
    history, now = feed([None] * 299, history=history, now=now)
    history, _ = feed([60.0], history=history, now=now)

    assert forecast.latest(history).middle < 30.0


def test_silence_that_lasted_as_long_as_is_remembered_is_not_judged():
    history, _ = feed([0.0] * 600)

    assert forecast.latest(history) is None
    history, _ = feed([5.0] * 30, history=history, now=600.0)
    assert forecast.latest(history) is not None


def test_the_last_ten_seconds_before_a_gap_do_not_stand_for_all_of_it():
    steady, now = feed([20.0] * 600)
    history, _ = feed([*([30.0] * 10), *([None] * 300), 20.0], history=steady, now=now)

    assert forecast.latest(history).middle < 23.0
