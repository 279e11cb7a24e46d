"""What holds whatever happens."""

from __future__ import annotations

import random
import sys
from dataclasses import fields, is_dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.defaults import RulesSpec, behavior
from autoscaler.policy import recommend
from autoscaler.state import State
from autoscaler.types import MetricTarget, RatePolicy, Sample, ScalingPolicy, Supply

counts = st.integers(0, 8)
rate_policies = st.builds(
    RatePolicy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.sampled_from([1.0, 15.0, 60.0])
)
rules = st.builds(
    RulesSpec,
    stabilization_s=st.none() | st.sampled_from([0.0, 5.0, 60.0, 300.0]),
    select=st.none() | st.sampled_from(["Max", "Min", "Disabled"]),
    policies=st.none() | st.lists(rate_policies, max_size=3).map(tuple),
    tolerance=st.none() | st.sampled_from([0.0, 0.1, 0.5]),
)
metrics = st.lists(
    st.builds(
        MetricTarget,
        st.sampled_from(["cpu", "memory", "deviceMemory", "concurrency"]),
        st.floats(0.5, 100.0),
    ),
    max_size=4,
    unique_by=lambda m: m.name,
).map(tuple)


@st.composite
def policies(draw):
    low = draw(st.integers(0, 4))
    return ScalingPolicy(
        min_replicas=low,
        max_replicas=max(1, low + draw(st.integers(0, 12))),
        target_qps=draw(st.none() | st.floats(0.1, 100.0)),
        mode=draw(st.sampled_from(["honour", "learn"])),
        metrics=draw(metrics),
        behavior=behavior(draw(rules), draw(rules)),
        idle_s=draw(st.sampled_from([0.0, 3.0, 30.0])),
        concurrency_limit=draw(st.sampled_from([0, 1, 32])),
    )


supplies = st.builds(Supply, counts, counts, counts)
percents = st.lists(st.floats(0.0, 400.0), max_size=6).map(tuple)
samples = st.builds(
    Sample,
    dt=st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.0, 1.0, 2.5, 30.0]),
    arrivals=st.none() | st.integers(0, 400),
    completions=st.none() | st.integers(0, 400),
    in_flight=st.none() | st.floats(0.0, 300.0),
    queued=st.none() | st.floats(0.0, 500.0),
    queued_now=st.integers(0, 5),
    cpu=percents,
    memory=percents,
    device_memory=percents,
    wake=st.booleans(),
)
quiet = st.builds(Sample, dt=st.just(1.0), arrivals=st.just(0), in_flight=st.just(0.0), queued=st.just(0.0))
pasts = st.lists(st.tuples(supplies, samples | quiet), max_size=25)


def live(policy, past):
    """The state after a past, and the time of its last sample."""
    now = 50.0
    state = State.initial(now)
    for supply, sample in past:
        now += sample.dt
        _, state = recommend(policy, supply, sample, state, now)
    return state, now


@given(policies(), pasts, supplies, samples)
@settings(max_examples=80, deadline=None)
def test_the_count_lies_between_min_and_max(policy, past, supply, sample):
    state, now = live(policy, past)
    recommendation, _ = recommend(policy, supply, sample, state, now + sample.dt)

    assert policy.min_replicas <= recommendation.replicas <= policy.max_replicas
    assert recommendation.previous == supply.ready + supply.starting
    assert recommendation.reasons


@given(policies(), pasts, supplies, samples)
@settings(max_examples=80, deadline=None)
def test_missing_data_never_lower_the_count(policy, past, supply, sample):
    state, now = live(policy, past)
    blind = replace(sample, arrivals=None)
    recommendation, _ = recommend(policy, supply, blind, state, now + sample.dt)

    before = supply.ready + supply.starting if state.wanted is None else state.wanted
    assert recommendation.replicas >= min(before, policy.max_replicas)


@given(policies(), pasts, supplies, samples)
@settings(max_examples=50, deadline=None)
def test_the_same_question_has_the_same_answer_and_leaves_no_trace(policy, past, supply, sample):
    state, now = live(policy, past)
    before = repr(state)
    first = recommend(policy, supply, sample, state, now + sample.dt)

    assert recommend(policy, supply, sample, state, now + sample.dt) == first
    assert repr(state) == before


@given(
    policies(),
    pasts,
    supplies,
    samples.filter(lambda s: s.arrivals is not None),
    st.integers(0, 300),
    st.floats(0.0, 200.0),
    st.floats(0.0, 200.0),
    st.floats(0.0, 100.0),
)
@settings(max_examples=150, deadline=None)
def test_more_traffic_never_gives_fewer_replicas(policy, past, supply, sample, arrivals, flying, queued, percent):
    state, now = live(policy, past)
    more = replace(
        sample,
        arrivals=sample.arrivals + arrivals,
        in_flight=None if sample.in_flight is None else sample.in_flight + flying,
        queued=None if sample.queued is None else sample.queued + queued,
        cpu=tuple(p + percent for p in sample.cpu),
        memory=tuple(p + percent for p in sample.memory),
        device_memory=tuple(p + percent for p in sample.device_memory),
    )
    less_wanted, _ = recommend(policy, supply, sample, state, now + sample.dt)
    more_wanted, _ = recommend(policy, supply, more, state, now + sample.dt)

    assert more_wanted.replicas >= less_wanted.replicas


def size(value):
    """Bytes of an object and what it holds."""
    parts = (getattr(value, f.name) for f in fields(value)) if is_dataclass(value) else ()
    if isinstance(value, tuple):
        parts = value
    return sys.getsizeof(value) + sum(size(part) for part in parts)


def test_a_state_stays_small_however_wild_the_model():
    rng = random.Random(1)
    slow = RulesSpec(stabilization_s=3600.0, policies=(RatePolicy("Percent", 100, 1800.0),))
    policy = ScalingPolicy(
        min_replicas=0,
        max_replicas=100_000,
        target_qps=1.0,
        mode="learn",
        metrics=(MetricTarget("cpu", 50.0),),
        behavior=behavior(replace(slow, stabilization_s=0.0), slow),
        idle_s=5.0,
    )
    now, state = 0.0, State.initial(0.0)
    for i in range(4000):
        dt = rng.choice([0.001, 0.3, 1.0])
        now += dt
        load = 4000 - i if i % 3 else rng.randrange(8000)
        sample = Sample(dt, load if i % 7 else None, load, float(load), float(load), cpu=(50.0,) * 8)
        _, state = recommend(policy, Supply(8, rng.randrange(3), 0), sample, state, now)

    assert size(state) < 64 * 1024
