from __future__ import annotations

import pytest

from autoscaler.types import External, ExternalTarget, MetricTarget, Sample


def reading(recommendation, name):
    return next(r for r in recommendation.readings if r.name == name)


def test_qps_says_what_it_saw_and_wants(timeline):
    model = timeline()
    model.run(20, qps=41.2)

    qps = reading(model.last, "qps")
    assert qps.value == pytest.approx(41.2, abs=0.2)
    assert (qps.target, qps.replicas) == (20.0, 3)
    assert qps.note == "41.2 requests/s over 10 s at 20 per replica want 3"


def test_refused_requests_are_demand(timeline):
    model = timeline(capacity=10.0)
    model.run(15, qps=100, completions=10, queued=0.0, queued_now=0)

    assert reading(model.last, "qps").replicas == 5


def test_cpu_is_the_mean_of_ready_replicas(timeline):
    model = timeline(ready=2, target_qps=None, metrics=(MetricTarget("cpu", 60.0),))
    model.call(Sample(1.0, 10, cpu=(90.0, 70.0)))

    cpu = reading(model.last, "cpu")
    assert (cpu.value, cpu.replicas) == (pytest.approx(80.0), 3)
    assert "CPU at 80 percent (mean of 2 ready)" in cpu.note


def test_a_saturated_replica_does_not_multiply_starting_ones(timeline):
    model = timeline(cold_start_s=60.0, target_qps=None, metrics=(MetricTarget("cpu", 50.0),))

    assert max(model.run(50, cpu=(100.0,))) == 2


def test_a_saturated_replica_does_not_remove_starting_ones(timeline):
    model = timeline(ready=1, starting=[1e9] * 4, target_qps=None, metrics=(MetricTarget("cpu", 50.0),))

    assert min(model.run(200, cpu=(95.0,))) == 5


def test_a_replica_that_was_not_measured_is_idle_upwards_and_busy_downwards(timeline):
    up = timeline(ready=4, target_qps=None, metrics=(MetricTarget("cpu", 50.0),))
    up.call(Sample(1.0, 10, cpu=(100.0, 90.0)))
    assert reading(up.last, "cpu").replicas == 4

    down = timeline(ready=4, target_qps=None, metrics=(MetricTarget("cpu", 50.0),))
    assert min(down.run(200, cpu=(0.0, 10.0))) == 4


@pytest.mark.parametrize(("metric", "part"), [("memory", "memory"), ("deviceMemory", "device_memory")])
def test_memory_decides_like_cpu(timeline, metric, part):
    model = timeline(target_qps=None, metrics=(MetricTarget(metric, 50.0),))
    model.run(12, **{part: (99.0,)})

    assert model.last.replicas == 2
    assert model.last.signal == metric


def test_concurrency_counts_in_flight_and_queued(timeline):
    model = timeline(ready=2, target_qps=None, metrics=(MetricTarget("concurrency", 8.0),))
    model.run(20, qps=10, in_flight=16.0, queued=0.0)
    assert model.last.replicas == 2

    model.run(12, qps=10, in_flight=16.0, queued=20.0)
    assert reading(model.last, "concurrency").value == pytest.approx(36.0)
    assert model.last.replicas > 2


@pytest.mark.parametrize(("limit", "target"), [(10, 7.0), (0, 70.0)])
def test_without_any_target_concurrency_decides_until_a_capacity_is_known(timeline, limit, target):
    model = timeline(target_qps=None, concurrency_limit=limit)
    model.run(15, qps=10, in_flight=3 * target, queued=0.0, completions=None)

    assert reading(model.last, "concurrency").target == pytest.approx(target)
    assert model.last.replicas == 3


def test_learn_takes_the_target_as_a_guess_until_the_capacity_is_known(timeline):
    model = timeline(mode="learn", target_qps=1000.0, concurrency_limit=10)
    model.run(15, qps=50, in_flight=20.0, queued=0.0, completions=None)
    assert [r.name for r in model.last.readings] == ["qps", "concurrency", "queue"]
    assert model.last.replicas == 3

    model.run(15, qps=50, in_flight=20.0, queued=0.0)
    assert [r.name for r in model.last.readings] == ["capacity", "queue"]
    assert model.last.capacity == pytest.approx(10 / (20 / 50), rel=0.05)
    assert model.last.replicas == 3


def test_a_queue_that_stands_adds_what_the_served_rate_lacks(timeline):
    """The target is four times what a replica can do: the queue finds out, and it is not forgotten at once."""
    model = timeline(capacity=10.0, target_qps=40.0, cold_start_s=2.0)
    model.run(240, qps=38)
    assert (model.count, model.queue) == (4, 0.0)
    assert max(model.counts) <= 6

    assert set(model.run(300, qps=38)) == {4}
    assert "requests/s a replica were too many" in reading(model.last, "queue").note

    assert model.run(100, qps=8)[-1] == 1, "with less to do fewer are enough"


def test_a_queue_that_falls_fast_enough_adds_nothing(timeline):
    model = timeline(capacity=20.0)
    model.run(30, qps=10)
    model.queue = 200.0

    assert max(model.run(60, qps=10)) == 1


def test_a_queue_is_no_reason_while_a_promised_replica_has_no_room(timeline):
    model = timeline(capacity=10.0, target_qps=40.0, cold_start_s=1e9)

    assert max(model.run(300, qps=38)) == 2


def test_stuck_replicas_are_not_multiplied_at_once(timeline):
    model = timeline(capacity=0.0, cold_start_s=1.0)
    model.run(18, qps=5)

    assert model.count == 2
    assert model.last.signal in {"queue", "concurrency"}


def test_missing_parts_are_named(timeline):
    model = timeline(metrics=(MetricTarget("cpu", 50.0), MetricTarget("concurrency", 5.0)))
    model.call(Sample(dt=1.0, arrivals=None))

    assert {r.name: r.replicas for r in model.last.readings} == {
        "qps": None,
        "cpu": None,
        "concurrency": None,
        "queue": None,
    }
    assert "CPU is missing" in " ".join(model.last.reasons)


def test_an_external_sum_is_shared_among_the_replicas(timeline):
    model = timeline(ready=2, target_qps=None, external=(ExternalTarget("waiting", 4.0),))
    model.call(Sample(1.0, 10, external=(External("waiting", 13.0),)))

    waiting = reading(model.last, "waiting")
    assert (waiting.value, waiting.replicas, model.last.replicas) == (13.0, 4, 4)
    assert (model.last.signal, waiting.note) == ("waiting", "waiting at 13 at 4 per replica want 4")


def test_an_external_level_asks_for_replicas_in_proportion(timeline):
    model = timeline(ready=4, target_qps=None, external=(ExternalTarget("fill", 0.5, "Value"),))
    model.call(Sample(1.0, 10, external=(External("fill", 0.7),)))
    assert model.last.replicas == 6

    low = timeline(ready=4, target_qps=None, external=(ExternalTarget("fill", 0.5, "Value"),))
    low.call(Sample(1.0, 10, external=(External("fill", 0.2),)))
    assert reading(low.last, "fill").replicas == 2


@pytest.mark.parametrize("kind", ["AverageValue", "Value"])
def test_an_external_metric_without_measure_asks_for_the_most_there_may_be(timeline, kind):
    model = timeline(ready=2, max_replicas=6, external=(ExternalTarget("bytes", 0.001, kind),))
    assert model.run(60, external=(External("bytes", 1e308),))[-1] == 6


def test_an_external_metric_that_is_missing_blocks_the_way_down_and_not_up(timeline):
    model = timeline(ready=4, external=(ExternalTarget("waiting", 4.0),))
    gone = External("waiting", None, "Prometheus gives no answer: refused")
    assert set(model.run(200, qps=5, external=(gone,))) == {4}
    assert model.last.signal == "hold"
    assert any("waiting is missing: Prometheus gives no answer: refused" in reason for reason in model.last.reasons)
    assert max(model.run(30, qps=119, external=(gone,))) == 6
