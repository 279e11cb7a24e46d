"""Demand out of cumulative reports: exact over lost reports, restarts of workers and of the controller."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.wire import LATENCY_BOUNDS, EndpointCounters, ModelCounters, Report
from tangram.core.demand import STALE_S, Demand, DemandTracker, quantile


def report(uptime: float, worker: int = 0, epoch: str = "e1", **counters: Any) -> Report:
    models = (ModelCounters(name="m", **counters),) if counters else ()
    return Report(worker=worker, epoch=epoch, uptime_s=uptime, applied=(1, 1), models=models)


def take(tracker: DemandTracker, now: float) -> Demand:
    tracker.begin(now)
    return tracker.take("m", now)


def test_a_second_of_traffic() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, arrivals=5, completions=4, in_flight_s=2.0, queued_s=0.5, queued=1, in_flight=2), 101.0)
    assert take(tracker, 101.0) == Demand(1.0, 5, 4, 2.0, 0.5, queued_now=1, in_flight_now=2)


def test_a_lost_report_costs_nothing() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, arrivals=5), 101.0)
    take(tracker, 101.0)
    tracker.report(report(3.0, arrivals=25), 103.0)
    demand = take(tracker, 103.0)
    assert (demand.dt, demand.arrivals) == (2.0, 20)


def test_a_report_without_the_model_means_no_change() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, arrivals=5, queued=3), 101.0)
    take(tracker, 101.0)
    tracker.report(report(2.0), 102.0)
    demand = take(tracker, 102.0)
    assert (demand.dt, demand.arrivals, demand.queued_now) == (1.0, 0, 3)


def test_no_worker_means_unknown_and_not_zero() -> None:
    assert take(DemandTracker(100.0), 101.0).arrivals is None


def test_a_silent_worker_makes_demand_unknown() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, worker=0, arrivals=5), 101.0)
    tracker.report(report(1.0, worker=1, arrivals=5), 101.0)
    take(tracker, 101.0)
    tracker.report(report(1.0 + 2 * STALE_S, worker=0, arrivals=50), 101.0 + 2 * STALE_S)
    assert take(tracker, 101.0 + 2 * STALE_S).arrivals is None


def test_what_workers_eject_is_known_until_they_take_it_back() -> None:
    tracker = DemandTracker(100.0)
    ill = (EndpointCounters(id="m-1", ejected="slow"), EndpointCounters(id="m-2"))
    tracker.report(report(1.0, endpoints=ill), 101.0)
    assert tracker.ejections("m") == {"m-1": "slow"}
    tracker.report(report(1.0, worker=1, endpoints=(EndpointCounters(id="m-1"),)), 101.0)
    assert tracker.ejections("m") == {"m-1": "slow (in 1 of 2 workers)"}
    tracker.gone(1)
    tracker.report(report(2.0, endpoints=(EndpointCounters(id="m-1"),)), 102.0)
    assert tracker.ejections("m") == {}


def test_a_worker_whose_process_ended_is_not_waited_for() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, worker=0, arrivals=5, in_flight=1), 101.0)
    tracker.report(report(1.0, worker=1, arrivals=5, in_flight=3), 101.0)
    take(tracker, 101.0)
    tracker.gone(1)
    tracker.report(report(9.0, worker=0, arrivals=13, in_flight=1), 109.0)
    demand = take(tracker, 109.0)
    assert (demand.arrivals, demand.in_flight_now) == (8, 1)


def test_a_restarted_worker_counts_from_zero_again() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(50.0, arrivals=500), 150.0)
    take(tracker, 150.0)
    tracker.report(report(0.5, epoch="e2", arrivals=7), 151.0)
    assert take(tracker, 151.0).arrivals == 7


def test_a_worker_older_than_the_controller_begins_with_a_baseline() -> None:
    tracker = DemandTracker(1000.0)
    tracker.report(report(500.0, arrivals=100_000), 1001.0)
    assert take(tracker, 1001.0).arrivals == 0
    tracker.report(report(501.0, arrivals=100_010), 1002.0)
    demand = take(tracker, 1002.0)
    assert (demand.dt, demand.arrivals) == (1.0, 10)


def test_two_workers_add_up_over_the_same_second() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, worker=0, arrivals=5, in_flight_s=1.0), 101.0)
    tracker.report(report(1.0, worker=1, arrivals=7, in_flight_s=2.0), 101.0)
    demand = take(tracker, 101.0)
    assert (demand.dt, demand.arrivals, demand.in_flight) == (1.0, 12, 3.0)


def test_a_period_without_a_report_keeps_its_counts_for_the_next() -> None:
    tracker = DemandTracker(100.0)
    tracker.report(report(1.0, arrivals=5), 101.0)
    take(tracker, 101.0)
    assert take(tracker, 101.5) == Demand(0.0, 0)
    tracker.report(report(2.0, arrivals=9), 102.0)
    assert take(tracker, 102.0).arrivals == 4


def test_shown_rate_and_percentiles() -> None:
    tracker = DemandTracker(100.0)
    buckets = [0] * (len(LATENCY_BOUNDS) + 1)
    for second in range(1, 11):
        buckets[1] += 10
        buckets[4] += 1 if second == 10 else 0
        tracker.report(report(second, arrivals=20 * second, latency_buckets=tuple(buckets)), 100.0 + second)
        take(tracker, 100.0 + second)
    assert tracker.qps("m", 110.0) == pytest.approx(20.0)
    p50, p99 = tracker.latency_s("m", (0.5, 0.995))
    assert p50 is not None
    assert p99 is not None
    assert LATENCY_BOUNDS[0] < p50 <= LATENCY_BOUNDS[1]
    assert LATENCY_BOUNDS[3] < p99 <= LATENCY_BOUNDS[4]


def test_quantiles_of_nothing_and_beyond_the_last_bound() -> None:
    empty = [0] * (len(LATENCY_BOUNDS) + 1)
    assert quantile(empty, 0.5) is None
    assert quantile([*empty[:-1], 4], 0.5) == LATENCY_BOUNDS[-1]


def test_in_flight_of_a_replica_is_the_sum_over_workers() -> None:
    tracker = DemandTracker(100.0)
    for worker in (0, 1):
        tracker.report(
            report(1.0, worker=worker, arrivals=1, endpoints=(EndpointCounters(id="m-1", in_flight=2 + worker),)), 101.0
        )
    assert tracker.replica_in_flight("m", "m-1") == 5
    assert tracker.replica_in_flight("m", "m-2") == 0
