from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler import window
from autoscaler.types import Sample, Supply

ONE = Supply(1, 0, 0)


def fold(*samples, supply=ONE):
    """Marks and the time after samples that follow each other without a gap (None is a second without a sample)."""
    marks, now = (), 0.0
    for sample in samples:
        now += 1.0 if sample is None else sample.dt
        marks = marks if sample is None else window.add(marks, sample, now)
    return marks, now


def rate(marks, now):
    return window.rate(*window.both(marks, now))


def stable(marks, now):
    return window.both(marks, now)[0]


def test_a_steady_rate_is_measured_over_the_stable_window():
    marks, now = fold(*[Sample(dt=1.0, arrivals=12)] * 15)

    assert rate(marks, now) == (12.0, 10.0, None)


def test_a_lost_report_is_not_silence():
    marks, now = fold(*[Sample(1.0, 12)] * 4, None, None, Sample(1.0, None), *[Sample(1.0, 12)] * 4)

    assert rate(marks, now).value == pytest.approx(12.0)
    assert stable(marks, now).covered == pytest.approx(7.0)


def test_a_long_report_counts_for_the_share_inside_the_window():
    marks, now = fold(Sample(dt=40.0, arrivals=400))

    totals = stable(marks, now)
    assert (totals.covered, totals.arrivals) == (pytest.approx(10.0), pytest.approx(100.0))


def test_one_request_in_a_moment_is_not_a_high_rate():
    marks, now = fold(Sample(dt=0.02, arrivals=1))

    assert rate(marks, now).value < 0.5


def test_a_step_takes_over_within_two_seconds_and_says_from_what():
    marks, now = fold(*[Sample(1.0, 5)] * 10, *[Sample(1.0, 60)] * 2)

    value, over, before = rate(marks, now)
    assert value > 40.0
    assert over == window.SHORT_S
    assert before == pytest.approx(16.0)


@pytest.mark.parametrize("arrivals", [[17, 14, 23, 15, 12, 19, 17, 22, 20, 19], [0, 0, 0, 0, 0, 0, 0, 1, 2, 1]])
def test_chance_does_not_take_over(arrivals):
    marks, now = fold(*[Sample(1.0, n) for n in arrivals])

    assert rate(marks, now).window == window.STABLE_S


def test_a_fall_is_believed_slowly():
    marks, now = fold(*[Sample(1.0, 60)] * 10, *[Sample(1.0, 0)] * 3)

    assert rate(marks, now) == (pytest.approx(42.0), window.STABLE_S, None)


def test_a_storm_of_wakes_costs_no_memory_and_loses_no_arrival():
    marks, now = fold(*[Sample(1.0, 10)] * 5, *[Sample(0.001, 1, wake=True)] * 3000)

    assert len(marks) <= 16
    assert stable(marks, now).arrivals == pytest.approx(3050)


def test_alternating_gaps_are_bounded_too():
    marks, _ = fold(*[Sample(0.001, 1), Sample(0.001, None)] * 2000)

    assert len(marks) <= 64


def test_samples_of_no_length_are_counted():
    marks, now = fold(Sample(1.0, 10), Sample(0.0, 3), Sample(0.0, 4))

    assert stable(marks, now).arrivals == pytest.approx(17)


def test_levels_are_means_over_time():
    marks, now = fold(*[Sample(1.0, 1, in_flight=2.0, queued=0.0)] * 6, Sample(4.0, 1, in_flight=4.0, queued=1.0))

    totals = stable(marks, now)
    assert totals.in_flight / totals.loaded == pytest.approx(2.8)
    assert totals.queued / totals.loaded == pytest.approx(0.4)


def test_usage_keeps_the_load_when_a_replica_is_added():
    levels = ()
    for second in range(9):
        levels = window.measure(levels, Sample(1.0, 1, cpu=(90.0,)), ONE, float(second))
    levels = window.measure(levels, Sample(1.0, 1, cpu=(45.0, 45.0)), Supply(2, 0, 0), 9.0)

    usage = window.usage(levels, 9.0, "cpu")
    assert usage is not None
    assert usage.total == pytest.approx(90.0)
    assert (usage.measured, usage.missing) == (2, 0)


def test_usage_that_was_never_measured_is_missing():
    levels = window.measure((), Sample(1.0, 1, cpu=(45.0,)), ONE, 1.0)

    assert window.usage(levels, 1.0, "deviceMemory") is None


def test_usage_is_forgotten_with_the_window_and_costs_no_memory():
    levels, now = (), 0.0
    for _ in range(3000):
        now += 0.001
        levels = window.measure(levels, Sample(0.001, 1, cpu=(45.0,)), ONE, now)
    assert len(levels) <= 16
    assert window.usage(levels, now, "cpu").total == pytest.approx(45.0)

    assert window.measure(levels, Sample(1.0, 1), ONE, now + 11.0) == ()


reports = st.tuples(
    st.sampled_from([0.25, 1.0, 1.0, 1.0, 1.1, 4.0]),
    st.sampled_from([0.0, 0.0, 0.0, 1.5]),
    st.none() | st.integers(0, 50),
    st.none() | st.integers(0, 50),
    st.none() | st.floats(0.0, 40.0),
)


@given(st.lists(reports, min_size=1, max_size=30))
def test_a_window_is_the_sum_of_what_lies_in_it(past):
    """Against adding up every report, by the share of it that lies in the window."""
    marks, now, told = (), 0.0, []
    for seconds, gap, arrivals, completions, level in past:
        now += gap + seconds
        sample = Sample(seconds, arrivals, completions, level, level)
        marks = window.add(marks, sample, now)
        told.append((now, sample))

    stable, short = window.both(marks, now)
    for totals, length in ((stable, window.STABLE_S), (short, window.SHORT_S)):
        covered = arrivals = worked = completions = loaded = in_flight = 0.0
        for end, sample in told:
            inside = min(sample.dt, end - (now - length))
            if inside <= 0.0 or sample.arrivals is None:
                continue
            share = inside / sample.dt
            covered, arrivals = covered + inside, arrivals + share * sample.arrivals
            if sample.completions is not None:
                worked, completions = worked + inside, completions + share * sample.completions
            if sample.in_flight is not None:
                loaded, in_flight = loaded + inside, in_flight + inside * sample.in_flight
        assert totals == pytest.approx((covered, arrivals, worked, completions, loaded, in_flight, in_flight))
