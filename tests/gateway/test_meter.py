from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.meter import Ending, Level, Meter
from gateway.wire import LATENCY_BOUNDS


def test_a_level_integrates_and_counts_busy_time():
    level = Level(0.0)
    level.add(2, 1.0)
    level.add(1, 3.0)
    level.add(-3, 4.0)
    assert level.area(10.0) == 2 * 2 + 3 * 1
    assert level.busy(10.0) == 3.0


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(-3, 3)), max_size=30))
def test_the_integral_is_that_of_the_step_function(steps):
    level, now, value, area = Level(0.0), 0.0, 0, 0.0
    for wait, step in steps:
        step = max(step, -value)
        area += value * wait
        now += wait
        level.add(step, now)
        value += step
    assert level.value == value
    assert level.area(now + 1) == pytest.approx(area + value)


def test_each_ending_is_counted_where_an_operator_looks_for_it():
    model = Meter(0, "e", 0.0).model("m", 0.0)
    model.finish(Ending.COMPLETED, 200, 0.02)
    model.finish(Ending.COMPLETED, 500, 100.0)
    model.finish(Ending.FAILED, 504, 60.0)
    model.finish(Ending.REFUSED, 429, 0.0, "queue_full")
    model.finish(Ending.CANCELLED, 499, 1.0)
    model.finish(Ending.REJECTED, 400, 0.0)
    counters = model.counters(1.0)
    assert (counters.completions, counters.errors, counters.refused, counters.cancelled) == (2, 2, 1, 1)
    assert counters.latency_s == pytest.approx(100.02)
    assert counters.latency_buckets[LATENCY_BOUNDS.index(0.025)] == 1
    assert counters.latency_buckets[-1] == 1
    assert sum(counters.latency_buckets) == 2
    assert sum(model.codes.values()) == 6


def test_a_latency_on_a_bound_belongs_to_its_bucket():
    model = Meter(0, "e", 0.0).model("m", 0.0)
    model.finish(Ending.COMPLETED, 200, LATENCY_BOUNDS[3])
    assert model.buckets[3] == 1


def test_a_report_holds_what_changed_and_a_full_one_all():
    meter = Meter(3, "e", 100.0)
    meter.model("a", 100.0).arrivals = 1
    meter.model("b", 100.0)
    assert [m.name for m in meter.report((1, 2), 101.0, full=True).models] == ["a", "b"]
    assert meter.report((1, 2), 102.0, full=False).models == ()
    meter.model("b", 102.0).arrivals = 5
    report = meter.report((1, 3), 103.0, full=False)
    assert [(m.name, m.arrivals) for m in report.models] == [("b", 5)]
    assert (report.worker, report.epoch, report.uptime_s, report.applied) == (3, "e", 3.0, (1, 3))


def test_what_is_in_flight_changes_with_time_alone():
    meter = Meter(0, "e", 0.0)
    meter.model("m", 0.0).endpoint("m-1", 0.0).flight.add(1, 0.0)
    meter.report((1, 1), 1.0, full=True)
    (model,) = meter.report((1, 1), 3.0, full=False).models
    assert model.in_flight_s == 3.0


def test_removed_endpoints_and_models_are_reported_once_more_and_forgotten():
    meter = Meter(0, "e", 0.0)
    model = meter.model("m", 0.0)
    endpoint = model.endpoint("m-1", 0.0)
    endpoint.flight.add(1, 0.0)
    endpoint.removed = model.removed = True
    assert meter.report((1, 1), 1.0, full=False).models[0].endpoints[0].in_flight == 1
    endpoint.flight.add(-1, 2.0)
    assert meter.report((1, 1), 2.0, full=False).models[0].endpoints[0].in_flight == 0
    assert model.flight.area(2.0) == 2.0
    assert not meter.models
    assert meter.report((1, 1), 3.0, full=True).models == ()
