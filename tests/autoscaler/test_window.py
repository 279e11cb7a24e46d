from __future__ import annotations

import pytest

from autoscaler import window
from autoscaler.types import Sample, Supply

ONE = Supply(1, 0, 0)


def fold(*samples, supply=ONE):
    """Spans and the time after samples that follow each other without a gap (None is a second without a sample)."""
    spans, now = (), 0.0
    for sample in samples:
        now += 1.0 if sample is None else sample.dt
        spans = spans if sample is None else window.add(spans, sample, supply, now)
    return spans, now


def rate(spans, now):
    return window.rate(window.totals(spans, now, window.STABLE_S), window.totals(spans, now, window.SHORT_S))


def test_a_steady_rate_is_measured_over_the_stable_window():
    spans, now = fold(*[Sample(dt=1.0, arrivals=12)] * 15)

    assert rate(spans, now) == (12.0, 10.0, None)


def test_a_lost_report_is_not_silence():
    spans, now = fold(*[Sample(1.0, 12)] * 4, None, None, Sample(1.0, None), *[Sample(1.0, 12)] * 4)

    assert rate(spans, now).value == pytest.approx(12.0)
    assert window.totals(spans, now, 10.0).covered == pytest.approx(7.0)


def test_a_long_report_counts_for_the_share_inside_the_window():
    spans, now = fold(Sample(dt=40.0, arrivals=400))

    totals = window.totals(spans, now, 10.0)
    assert (totals.covered, totals.arrivals) == (pytest.approx(10.0), pytest.approx(100.0))


def test_one_request_in_a_moment_is_not_a_high_rate():
    spans, now = fold(Sample(dt=0.02, arrivals=1))

    assert rate(spans, now).value < 0.5


def test_a_step_takes_over_within_two_seconds_and_says_from_what():
    spans, now = fold(*[Sample(1.0, 5)] * 10, *[Sample(1.0, 60)] * 2)

    value, over, before = rate(spans, now)
    assert value > 40.0
    assert over == window.SHORT_S
    assert before == pytest.approx(16.0)


@pytest.mark.parametrize("arrivals", [[17, 14, 23, 15, 12, 19, 17, 22, 20, 19], [0, 0, 0, 0, 0, 0, 0, 1, 2, 1]])
def test_chance_does_not_take_over(arrivals):
    spans, now = fold(*[Sample(1.0, n) for n in arrivals])

    assert rate(spans, now).window == window.STABLE_S


def test_a_fall_is_believed_slowly():
    spans, now = fold(*[Sample(1.0, 60)] * 10, *[Sample(1.0, 0)] * 3)

    assert rate(spans, now) == (pytest.approx(42.0), window.STABLE_S, None)


def test_a_storm_of_wakes_costs_no_memory_and_loses_no_arrival():
    spans, now = fold(*[Sample(1.0, 10)] * 5, *[Sample(0.001, 1, wake=True)] * 3000)

    assert len(spans) <= 16
    assert window.totals(spans, now, 10.0).arrivals == pytest.approx(3050)


def test_alternating_gaps_are_bounded_too():
    spans, _ = fold(*[Sample(0.001, 1), Sample(0.001, None)] * 2000)

    assert len(spans) <= 64


def test_samples_of_no_length_are_counted():
    spans, now = fold(Sample(1.0, 10), Sample(0.0, 3), Sample(0.0, 4))

    assert window.totals(spans, now, 10.0).arrivals == pytest.approx(17)


def test_levels_are_means_over_time():
    spans, now = fold(*[Sample(1.0, 1, in_flight=2.0, queued=0.0)] * 6, Sample(4.0, 1, in_flight=4.0, queued=1.0))

    totals = window.totals(spans, now, 10.0)
    assert totals.in_flight / totals.loaded == pytest.approx(2.8)
    assert totals.queued / totals.loaded == pytest.approx(0.4)


def test_usage_keeps_the_load_when_a_replica_is_added():
    spans, now = fold(*[Sample(1.0, 1, cpu=(90.0,))] * 9)
    spans = window.add(spans, Sample(1.0, 1, cpu=(45.0, 45.0)), Supply(2, 0, 0), now + 1)

    usage = window.usage(spans, now + 1, "cpu")
    assert usage is not None
    assert usage.total == pytest.approx(90.0)
    assert (usage.measured, usage.missing) == (2, 0)


def test_usage_that_was_never_measured_is_missing():
    spans, now = fold(*[Sample(1.0, 1)] * 3)

    assert window.usage(spans, now, "deviceMemory") is None
