from __future__ import annotations

import random
from collections import Counter

from gateway.limits import Limits
from gateway.routing import BACKOFF_MAX_S, Model
from gateway.wire import EndpointEntry, ModelEntry


def entry(*endpoints: EndpointEntry, **fields) -> ModelEntry:
    return ModelEntry(name="m", endpoints=endpoints, **fields)


def at(id: str, **fields) -> EndpointEntry:
    return EndpointEntry(id=id, host="127.0.0.1", port=1000, **fields)


def picks(model: Model, count: int, limits: Limits | None = None, now: float = 0.0) -> Counter[str]:
    """How often each endpoint is taken when each request ends before the next."""
    limits, rng = limits or Limits(), random.Random(0)
    counted: Counter[str] = Counter()
    for _ in range(count):
        endpoint = model.acquire(limits, now, rng)
        if endpoint is not None:
            counted[endpoint.id] += 1
            limits.release(endpoint)
    return counted


def test_the_less_busy_of_two_is_taken():
    model, limits, rng = Model(entry(at("a"), at("b")), 0.0), Limits(), random.Random(0)
    taken = [model.acquire(limits, 0.0, rng).id for _ in range(10)]
    assert Counter(taken) == {"a": 5, "b": 5}


def test_two_random_choices_keep_the_load_even():
    model, limits, rng = Model(entry(*(at(f"e{n}") for n in range(10))), 0.0), Limits(), random.Random(0)
    for _ in range(1000):
        assert model.acquire(limits, 0.0, rng) is not None
    loads = [e.in_flight for e in model.endpoints.values()]
    assert max(loads) - min(loads) <= 6


def test_idle_endpoints_share_evenly():
    counted = picks(Model(entry(*(at(f"e{n}") for n in range(4))), 0.0), 4000)
    assert all(800 < n < 1200 for n in counted.values())


def test_weights_share_the_load_in_proportion():
    model, limits, rng = Model(entry(at("a", weight=3), at("b"), at("c")), 0.0), Limits(), random.Random(0)
    for _ in range(500):
        model.acquire(limits, 0.0, rng)
    loads = {e.id: e.in_flight for e in model.endpoints.values()}
    assert 280 <= loads["a"] <= 320


def test_weight_zero_and_draining_get_nothing():
    model = Model(entry(at("a", weight=0), at("b", draining=True), at("c")), 0.0)
    assert set(picks(model, 50)) == {"c"}
    assert repr(model) == "<Model m: 1 usable of 3 endpoints>"


def test_limits_are_filled_whole_before_none_is_left():
    model, limits, rng = Model(entry(*(at(f"e{n}", concurrency=2) for n in range(5))), 0.0), Limits(), random.Random(0)
    assert all(model.acquire(limits, 0.0, rng) for _ in range(10))
    assert model.acquire(limits, 0.0, rng) is None


def test_an_unreachable_endpoint_is_left_alone_for_a_moment_that_grows():
    model = Model(entry(at("a"), at("b")), 0.0)
    a = model.endpoints["a"]
    now, waits = 0.0, []
    for _ in range(5):
        a.fail(now, unreachable=True)
        waits.append(round(a.suspended_until - now, 3))
        assert set(picks(model, 20, now=now)) == {"b"}
        now = a.suspended_until
        assert set(picks(model, 50, now=now)) == {"a", "b"}
    assert waits == [0.2, 0.4, 0.8, BACKOFF_MAX_S, BACKOFF_MAX_S]
    a.succeed()
    a.fail(now, unreachable=True)
    assert round(a.suspended_until - now, 3) == 0.2


def test_failures_at_one_time_count_once():
    a = Model(entry(at("a")), 0.0).endpoints["a"]
    for _ in range(50):
        a.fail(1.0, unreachable=True)
    assert a.backoff_s == 0.2


def test_a_suspect_endpoint_serves_where_there_is_no_other():
    model = Model(entry(at("a"), at("b")), 0.0)
    model.endpoints["a"].fail(0.0, unreachable=False)
    assert set(picks(model, 20)) == {"b"}
    model.endpoints["b"].fail(0.0, unreachable=True)
    assert set(picks(model, 20)) == {"a"}
    assert model.next_resumption(0.0) == 0.2


def test_removed_endpoints_linger_until_nothing_is_in_flight():
    model, limits = Model(entry(at("a"), at("b")), 0.0), Limits()
    a = model.endpoints["a"]
    limits.acquire(a)
    assert model.take(entry(), 1.0).leaving
    assert set(model.endpoints) == {"a"}
    assert model.usable == []
    limits.release(a)
    model.forget(a)
    assert not model.endpoints


def test_a_removed_endpoint_that_is_named_again_keeps_its_count():
    model, limits = Model(entry(at("a")), 0.0), Limits()
    limits.acquire(model.endpoints["a"])
    model.take(entry(), 1.0)
    model.take(entry(at("a")), 2.0)
    assert model.endpoints["a"].in_flight == 1
    assert [e.id for e in model.usable] == ["a"]
    assert model.usable_since == 2.0


def test_a_new_slot_is_told():
    model = Model(entry(at("a", slot=1)), 0.0)
    change = model.take(entry(at("a", slot=9)), 1.0)
    assert [(e.id, old) for e, old in change.moved] == [("a", 1)]


def test_the_expected_time_counts_down():
    model = Model(entry(expected_ready_s=10.0), 100.0)
    assert model.ready_in(104.0) == 6.0
    assert model.ready_in(200.0) == 0.0
    assert Model(entry(), 0.0).ready_in(1.0) is None
