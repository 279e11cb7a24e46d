"""The policy on virtual time: what an operator would see on a timeline."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from autoscaler.defaults import RulesSpec, behavior
from autoscaler.policy import recommend
from autoscaler.state import State
from autoscaler.types import MetricTarget, RatePolicy, Sample, Supply


def changes(counts):
    return sum(a != b for a, b in pairwise(counts))


# --- following the load ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_followed_within_five_seconds_and_undone_within_ninety(timeline, seed):
    model = timeline(rng=random.Random(seed))
    model.run(120, qps=5)
    assert model.count == 1

    assert model.run(5, qps=60)[-1] >= 3
    assert max(model.run(120, qps=60)) <= 5

    assert model.run(55, qps=5)[-1] >= 3, "kept for the stabilization window"
    assert model.run(35, qps=5)[-1] == 1


@pytest.mark.parametrize(("qps", "count"), [(5, 1), (17, 1), (25, 2), (35, 2), (50, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_make_replicas_flap(timeline, seed, qps, count):
    model = timeline(rng=random.Random(seed))
    model.run(60, qps=qps)

    counts = model.run(1800, qps=qps)
    assert changes(counts) <= 4, "in half an hour"
    assert sum(n - count for n in counts) <= 0.15 * count * len(counts)
    assert min(counts) >= count


def test_exact_traffic_never_changes_the_count(timeline):
    model = timeline()
    model.run(20, qps=37)

    assert set(model.run(600, qps=37)) == {2}


def test_within_the_tolerance_the_count_stays_and_says_so(timeline):
    model = timeline(ready=2)
    model.run(30, qps=43)

    assert (model.last.replicas, model.last.signal) == (2, "tolerance")
    assert model.last.reasons[0] == "43.0 requests/s over 10 s at 20 per replica want 3"
    assert "within the tolerance of 10 percent: keeps 2" in model.last.reasons


def test_the_greatest_signal_decides(timeline):
    model = timeline(metrics=(MetricTarget("cpu", 50.0), MetricTarget("memory", 80.0)))
    model.call(Sample(3.0, 90, cpu=(150.0,), memory=(10.0,)))

    assert {r.name: r.replicas for r in model.last.readings if r.name != "queue"} == {"qps": 2, "cpu": 3, "memory": 1}
    assert (model.last.replicas, model.last.signal) == (3, "cpu")


def test_down_needs_every_signal(timeline):
    model = timeline(ready=3, metrics=(MetricTarget("cpu", 50.0),))

    assert min(model.run(200, qps=5, cpu=(50.0, 50.0, 50.0))) == 3


def test_default_policies_bound_the_overshoot(timeline):
    model = timeline(max_replicas=100, cold_start_s=30.0)
    model.run(60, qps=5)
    counts = model.run(20, qps=2000)

    assert counts[4] == 5
    assert counts[9] == 10
    assert model.last.signal == "behavior"
    assert counts[-1] == 40


def test_behavior_policies_pace_the_fall(timeline):
    slow = behavior(down=RulesSpec(stabilization_s=0.0, policies=(RatePolicy("Pods", 1, 30.0),)))
    model = timeline(ready=5, behavior=slow)
    counts = model.run(140, qps=1)

    assert counts[8] == 5
    assert [counts.index(n) for n in (4, 3, 2, 1)] == [9, 39, 69, 99]


def test_scale_down_can_be_disabled(timeline):
    model = timeline(ready=5, min_replicas=0, idle_s=10.0, behavior=behavior(down=RulesSpec(select="Disabled")))

    assert set(model.run(300)) == {5}


# --- starting replicas -----------------------------------------------------------------------------------------------


def test_a_queue_during_a_cold_start_does_not_multiply_replicas(timeline):
    model = timeline(ready=0, min_replicas=0, cold_start_s=60.0, capacity=25.0)
    model.run(15)

    counts = model.run(180, qps=15)
    assert counts[0] == 1
    assert max(counts) == 1, "starting and backlogged, then working the backlog off"


def test_the_same_with_concurrency_alone(timeline):
    model = timeline(ready=0, min_replicas=0, cold_start_s=60.0, capacity=40.0, target_qps=None)
    model.run(15)

    assert max(model.run(180, qps=15)) == 1


def test_starting_replicas_are_not_asked_for_again(timeline):
    model = timeline(cold_start_s=90.0)
    model.run(20, qps=10)

    assert max(model.run(85, qps=100)) == 5


# --- zero ------------------------------------------------------------------------------------------------------------


def test_to_zero_after_the_idle_time_and_not_before(timeline):
    model = timeline(ready=3, min_replicas=0, idle_s=30.0)
    model.run(20, qps=50)

    counts = model.run(40)
    assert counts[28] == 3
    assert counts[29:] == [0] * 11
    assert model.counts[-11:] == [0] * 11


def test_idle_is_said(timeline):
    model = timeline(min_replicas=0, idle_s=30.0)
    model.run(12, qps=5)
    model.run(12)
    assert (model.last.replicas, model.last.signal) == (1, "idle")
    assert "no request for 12 s, to zero after 30 s: keeps 1" in model.last.reasons

    model.run(18)
    assert (model.last.replicas, model.last.signal) == (0, "idle")
    assert model.last.reasons == ("no request for 30 s, 30 s allowed: to zero",)


@pytest.mark.parametrize(
    "busy",
    [{"qps": 1.0}, {"in_flight": 0.1}, {"queued": 0.1}, {"queued_now": 1}],
    ids=["arrivals", "in flight", "queued", "queued now"],
)
def test_any_request_keeps_a_replica(timeline, busy):
    model = timeline(min_replicas=0, idle_s=30.0)

    assert min(model.run(100, **busy)) == 1


def test_with_a_minimum_there_is_no_zero(timeline):
    model = timeline(ready=1, min_replicas=1, idle_s=5.0)

    assert min(model.run(100)) == 1


def test_a_slow_loader_is_not_stopped_before_it_was_ready(timeline):
    model = timeline(ready=0, min_replicas=0, idle_s=20.0, cold_start_s=100.0)
    model.run(15)
    model.tick(qps=1)

    counts = model.run(118, queued=0.0, queued_now=0)
    assert counts[:98] == [1] * 98
    assert counts[117] == 1, "and once ready it has the whole idle time"
    assert model.run(5, queued=0.0, queued_now=0)[-1] == 0


def test_one_request_wakes_one_replica_at_once(timeline):
    model = timeline(ready=0, min_replicas=0)
    assert set(model.run(30)) == {0}

    model.now += 0.02
    woken = model.call(Sample(dt=0.02, arrivals=1, queued_now=1, wake=True))
    assert (woken.replicas, woken.signal) == (1, "wake")


@pytest.mark.parametrize(
    "sample",
    [Sample(0.0, None, wake=True), Sample(1.0, 1), Sample(1.0, 0, queued_now=1)],
    ids=["wake without a report", "arrival", "queued"],
)
def test_anything_that_waits_wakes(timeline, sample):
    model = timeline(ready=0, min_replicas=0)

    assert model.call(sample).replicas == 1


def test_a_wake_is_not_held_up_by_behavior(timeline):
    stuck = behavior(up=RulesSpec(stabilization_s=300.0, policies=(RatePolicy("Percent", 100, 60.0),)))
    model = timeline(ready=0, min_replicas=0, behavior=stuck)
    model.run(30)

    assert model.tick(qps=1).replicas == 1


def test_a_storm_from_zero_starts_several_but_not_all(timeline):
    model = timeline(ready=0, min_replicas=0, max_replicas=100, cold_start_s=30.0)
    model.run(30)
    counts = model.run(5, qps=1000)

    assert 1 <= counts[0] <= 4
    assert counts[-1] <= 8


def test_wakes_in_a_row_start_one_replica(timeline):
    model = timeline(ready=0, min_replicas=0, cold_start_s=30.0)
    model.run(20)
    for _ in range(10):
        model.now += 0.01
        model.call(Sample(dt=0.01, arrivals=1, queued_now=1, wake=True))

    assert model.count == 1


# --- missing data ----------------------------------------------------------------------------------------------------


def test_a_blackout_holds_and_says_so(timeline):
    model = timeline(ready=4)
    model.run(100, qps=75)

    for _ in range(300):
        model.now += 1.0
        model.call(Sample(dt=1.0, arrivals=None))
    assert set(model.counts[-300:]) == {4}
    assert model.last.signal == "hold"
    assert "no gateway worker reported" in " ".join(model.last.reasons)


def test_after_a_blackout_a_full_window_is_seen_before_anything_goes(timeline):
    model = timeline(ready=4, min_replicas=0, idle_s=20.0)
    model.run(100, qps=75)
    for _ in range(300):
        model.now += 1.0
        model.call(Sample(dt=1.0, arrivals=None))

    counts = model.run(80, qps=1)
    assert counts[59] == 4
    assert counts[-1] == 1


def test_a_blackout_is_no_silence(timeline):
    model = timeline(min_replicas=0, idle_s=30.0)
    model.run(20, qps=5)
    model.run(20)
    for _ in range(100):
        model.now += 1.0
        model.call(Sample(dt=1.0, arrivals=None))

    assert model.run(29)[-1] == 1
    assert model.run(5)[-1] == 0


def test_reports_that_come_late_lose_nothing(timeline):
    """Every other tick no report, then one of two seconds: as good as one each second."""
    model = timeline(ready=5, min_replicas=0, idle_s=30.0)
    for second in range(100):
        model.now += 1.0
        late = second % 2
        model.call(Sample(2.0, 70, in_flight=1.0, queued=0.0) if late else Sample(1.0, None))
    assert model.last.replicas == 2

    for second in range(34):
        model.now += 1.0
        model.call(Sample(2.0, 0, in_flight=0.0, queued=0.0) if second % 2 else Sample(1.0, None))
    assert model.last.replicas == 0


def test_up_needs_no_more_than_one_signal(timeline):
    model = timeline(metrics=(MetricTarget("cpu", 50.0),))
    model.run(15, qps=50)

    assert (model.last.replicas, model.last.signal) == (3, "qps")


def test_cpu_alone_adds_while_the_gateway_is_silent(timeline):
    model = timeline(metrics=(MetricTarget("cpu", 50.0),))
    model.call(Sample(dt=1.0, arrivals=None, cpu=(140.0,)))

    assert (model.last.replicas, model.last.signal) == (3, "cpu")


def test_missing_cpu_removes_nothing(timeline):
    model = timeline(ready=3, metrics=(MetricTarget("cpu", 50.0),))
    assert set(model.run(200, qps=5)) == {3}
    assert model.last.signal == "hold"
    assert "CPU is missing: of 3 ready replicas none was measured" in model.last.reasons

    counts = model.run(80, qps=5, cpu=(5.0, 5.0, 5.0))
    assert counts[55] == 3, "and the stabilization window starts when it is back"
    assert counts[-1] == 1


def test_cpu_has_nothing_to_say_before_a_replica_is_ready(timeline):
    model = timeline(ready=0, starting=[1e9] * 3, target_qps=None, metrics=(MetricTarget("cpu", 50.0),))

    assert set(model.run(200, qps=1)) == {3}


# --- restart ---------------------------------------------------------------------------------------------------------


def test_a_restarted_controller_removes_nothing_before_its_windows_are_full(timeline):
    model = timeline(ready=6)
    counts = model.run(90, qps=5)

    assert counts[:60] == [6] * 60
    assert counts[-1] == 1


def test_not_even_without_stabilization(timeline):
    model = timeline(ready=6, behavior=behavior(down=RulesSpec(stabilization_s=0.0)))
    counts = model.run(15, qps=5)

    assert counts[:9] == [6] * 9
    assert counts[10] == 1


def test_a_restart_in_a_burst_goes_on_up(timeline):
    model = timeline(ready=3)

    assert model.run(5, qps=170)[-1] == 7
    assert model.run(5, qps=170)[-1] == 9


def test_replicas_adopted_late_are_kept(timeline):
    model = timeline(ready=0)
    model.run(3, qps=5)
    model.ready = 5

    assert model.run(5, qps=5)[-1] == 5


# --- bounds and hand -------------------------------------------------------------------------------------------------


def test_a_replica_on_the_move_is_no_wish(timeline):
    """Make before break shows one replica more for a while; it is neither kept nor multiplied."""
    model = timeline(ready=2)
    model.run(100, qps=35)
    for _ in range(20):
        model.now += 1.0
        recommendation, model.state = recommend(
            model.policy, Supply(3, 0, 0), Sample(1.0, 35, None, 1.0, 0.0), model.state, model.now
        )
        assert (recommendation.replicas, recommendation.previous) == (2, 3)


def test_bounds_come_last_and_are_said(timeline):
    model = timeline(max_replicas=3)
    model.run(30, qps=200)
    assert (model.last.replicas, model.last.signal) == (3, "max")
    assert model.last.reasons[-1] == "at most 3"

    low = timeline(ready=2, min_replicas=2)
    low.run(100, qps=5)
    assert (low.last.replicas, low.last.signal) == (2, "min")


def test_a_raised_minimum_is_met_at_once(timeline, policy):
    model = timeline()
    model.run(20, qps=5)
    model.policy = policy(min_replicas=12)

    assert model.tick(qps=5).replicas == 12


def test_a_count_set_by_hand_stands_and_the_readings_are_told(timeline, policy):
    model = timeline(ready=2, fixed_replicas=7)
    model.run(30, qps=41)
    assert (model.last.replicas, model.last.signal) == (7, "fixed")
    assert {r.name: r.replicas for r in model.last.readings}["qps"] == 3

    model.policy = policy()
    counts = model.run(90, qps=41)
    assert counts[0] == 7, "given back, it falls as any count does"
    assert counts[-1] == 3


def test_zero_by_hand_stays_zero(timeline):
    model = timeline(fixed_replicas=0)

    assert set(model.run(60, qps=100)) == {0}


def test_irregular_calls_come_to_the_same(timeline):
    rng = random.Random(3)
    model = timeline()
    left = 0.0
    for _ in range(400):
        dt = rng.choice([0.0, 0.001, 0.05, 0.4, 1.0, 3.0])
        model.now += dt
        left += dt * 50
        model.call(Sample(dt, int(left), in_flight=1.0, queued=0.0))
        left -= int(left)

    assert set(model.counts[-300:]) == {3}


def test_the_state_is_a_new_one_each_time(policy):
    state = State.initial(5.0)
    before = repr(state)
    _, after = recommend(policy(), Supply(1, 0, 0), Sample(1.0, 10), state, 6.0)

    assert repr(state) == before
    assert after is not state


# --- replicas that become unready, drift, and sleep ------------------------------------------------------------------


def feed(policy, state, now, seconds, supply, **sample):
    """One sample a second; the last recommendation."""
    given = {"dt": 1.0, "arrivals": 30, "completions": 30, "in_flight": 15.0, "queued": 0.0, **sample}
    for _ in range(seconds):
        now += 1.0
        advice, state = recommend(policy, supply, Sample(**given), state, now)
    return advice, state, now


def test_replicas_that_become_unready_are_not_replaced_one_for_one(policy):
    wanted = policy(target_qps=None, mode="learn", concurrency_limit=8)
    advice, state, now = feed(wanted, State.initial(0.0), 0.0, 300, Supply(3, 0, 0, 30.0))
    before = advice.replicas

    down = Supply(0, 3, 0, 30.0)
    advice, state, now = feed(wanted, state, now, 60, down, completions=0, in_flight=0.0, queued=900.0, queued_now=900)
    assert advice.replicas <= before + 1
    back = Supply(3, 0, 0, 30.0)
    advice, *_ = feed(wanted, state, now, 60, back, completions=48, in_flight=24.0, queued=900.0, queued_now=900)
    assert advice.replicas <= before + 1


def test_full_replicas_that_do_less_than_was_learned_are_believed_at_once(policy):
    wanted = policy(target_qps=16.0, concurrency_limit=8)
    advice, state, now = feed(wanted, State.initial(0.0), 0.0, 300, Supply(3, 0, 0, 30.0))
    assert advice.replicas == 3

    slow = {"arrivals": 30, "completions": 18, "in_flight": 24.0, "queued": 60.0, "queued_now": 60}
    advice, *_ = feed(wanted, state, now, 15, Supply(3, 0, 0, 30.0), **slow)
    assert advice.replicas >= 5


def test_a_model_at_zero_sleeps_and_wakes_at_once(policy):
    wanted = policy(min_replicas=0)
    silent = {"arrivals": 0, "completions": 0, "in_flight": 0.0}
    advice, state, now = feed(wanted, State.initial(0.0), 0.0, 60, Supply(0, 0, 0), **silent)
    assert (advice.replicas, advice.signal) == (0, "idle")
    assert advice.reasons == ("no request for 60 s: stays at zero",)

    advice, *_ = feed(wanted, state, now, 1, Supply(0, 0, 0), arrivals=1, completions=0, in_flight=0.0, wake=True)
    assert advice.replicas >= 1
