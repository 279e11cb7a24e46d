from __future__ import annotations

import numpy as np
import pytest

from autoscaler.baselines import Fixed, Hpa, Kpa, Ray, Threshold
from autoscaler.defaults import behavior
from autoscaler.oracle import reference
from autoscaler.replay import Ours, replay, text_plot
from autoscaler.simulate import Faults, Starts, Workload, draw, simulate
from autoscaler.trace import Trace, parse
from autoscaler.types import ScalingPolicy


def work(rate=20.0, minutes=10, **changes):
    given = {"slots": 4, "service_s": 0.5, "service_cv": 0.5, "slo_s": 1.0, **changes}
    return Workload("w", Trace(60.0, (rate * 60.0,) * minutes), **given)


def run(workload, scaler, seed=1, start_s=20.0, **options):
    requests = draw(workload, np.random.default_rng(seed))
    options.setdefault("starts", Starts(start_s))
    return simulate(workload, requests, scaler, rng=np.random.default_rng(2), **options)


def policy(**changes):
    given = {
        "min_replicas": 1,
        "max_replicas": 100,
        "target_qps": 8.0,
        "mode": "honour",
        "metrics": (),
        "behavior": behavior(),
        "idle_s": 60.0,
        "concurrency_limit": 4,
    }
    return ScalingPolicy(**{**given, **changes})


def test_enough_replicas_keep_nobody_waiting_and_cost_what_they_cost():
    outcome = run(work(), Fixed(6), first=6)

    assert outcome.violations == 0
    assert outcome.cost == 6 * 600
    assert outcome.requests == pytest.approx(12_000, rel=0.05)


def test_too_few_replicas_make_everybody_wait_and_many_give_up():
    outcome = run(work(), Fixed(1), first=1)

    assert outcome.violation_share > 90.0
    assert outcome.timeouts > 0.3 * outcome.requests


def test_a_start_costs_from_its_first_second_and_serves_when_it_is_ready():
    outcome = run(work(), Fixed(6), first=1)

    assert outcome.series.total[0] == 6
    assert (outcome.series.ready[19], outcome.series.ready[20]) == (1, 6)
    assert outcome.cold_starts == 5


def test_a_drained_replica_costs_until_its_last_request_and_a_drain_is_undone_first():
    def scaler(view):
        return 2 if 100 <= view.now < 101 else 6

    outcome = run(work(service_s=5.0, rate=4.0), scaler, first=6)
    assert outcome.series.total[100] == 6, "still busy"
    assert outcome.cold_starts == 0


def test_the_same_seed_gives_the_same_run():
    first, second = (run(work(), Ours(policy()), first=3) for _ in range(2))

    assert (first.cost, first.violations) == (second.cost, second.violations)


@pytest.mark.parametrize(
    "scaler", [Hpa(5.6), Kpa(5.6, "rps"), Kpa(2.8, "concurrency"), Ray(2.0), Threshold(5.6)], ids=lambda s: repr(s)[:12]
)
def test_every_baseline_finds_its_level_at_a_steady_load(scaler):
    outcome = run(work(minutes=20), scaler, first=4)

    assert 3 <= outcome.series.wanted[-1] <= 6


def test_a_clairvoyant_plan_is_cheap_and_within_the_limit():
    waves = Workload("w", Trace(60.0, (600.0, 600.0, 2400.0, 2400.0) * 5), 4, 0.5, 0.5, 1.0)
    requests = draw(waves, np.random.default_rng(1))
    best = reference(waves, requests, 20.0, np.random.default_rng(2))
    ours = simulate(waves, requests, Ours(policy()), Starts(20.0), np.random.default_rng(2), first=3)

    assert best.violation_share <= 1.0
    assert best.cost < ours.cost


@pytest.mark.parametrize("target", [4.0, 16.0, 32.0, None])
def test_a_wrong_target_does_not_hurt_a_model_that_learns(target):
    outcome = run(work(minutes=20), Ours(policy(mode="learn", target_qps=target)), first=3)

    assert 100.0 * sum(outcome.series.late[60:]) / outcome.requests <= 1.0
    assert outcome.series.wanted[-1] in (3, 4)


def test_a_target_too_high_does_not_hurt_when_honoured():
    outcome = run(work(minutes=20), Ours(policy(target_qps=16.0)), first=3)

    assert outcome.violation_share <= 1.0


@pytest.mark.parametrize("kind", ["blackouts", "zeros"])
def test_nothing_shrinks_on_bad_data(kind):
    outcome = run(work(rate=40.0, minutes=15), Ours(policy()), first=7, faults=Faults(**{kind: ((300.0, 600.0),)}))

    assert outcome.last_shrink_on_bad_data is None
    assert outcome.violation_share <= 1.0


def test_all_unready_is_no_reason_to_multiply_replicas():
    outcome = run(work(rate=40.0, minutes=15), Ours(policy()), first=7, faults=Faults(unready=((300.0, 360.0),)))

    assert outcome.peak <= 13
    assert sum(outcome.series.late[-120:]) == 0, "the backlog is worked off"


def test_slices_grow_while_replicas_start():
    step = Workload("w", Trace(60.0, (600.0,) * 10 + (1800.0,) * 10), 4, 0.5, 0.5, 1.0)
    shares = []
    for most in (1.0, 3.0):
        scaler = Ours(policy(max_boost=most))
        shares.append(run(step, scaler, first=2, start_s=90.0, boost=scaler.boost).violation_share)

    assert shares[0] > 3.0
    assert shares[1] < 1.0


def test_a_timer_is_met_by_a_ready_replica():
    bins = [0.0] * (6 * 60 * 4)
    for k in range(3, len(bins), 30):
        bins[k] = 10.0
    timer = Workload("w", Trace(10.0, tuple(bins)), 4, 0.5, 0.5, 1.0)
    outcome = run(timer, Ours(policy(min_replicas=0)), first=0, least=0)

    late = outcome.series.late
    assert sum(late[:1200]) > 0, "the first are not known yet"
    assert sum(late[1200:]) == 0
    assert outcome.cost < 0.4 * outcome.seconds


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["# bin_s=60", "count", "x"], "line 3: 'x' is no count"),
        (["# bin_s=60", "-1"], "out of range"),
        (["count", "1"], "bin length is missing"),
        ([], "no counts"),
    ],
)
def test_a_bad_trace_is_refused_with_the_line(lines, words):
    with pytest.raises(ValueError, match=words):
        parse(lines)


def test_a_trace_is_read_cut_and_scaled():
    trace = parse(["# source=x | bin_s=60 | y", "count", "60", "120", "180"])

    assert trace.part(1, 3).scaled(0.5).counts == (60.0, 90.0)
    assert trace.mean_rate == pytest.approx(2.0)


@pytest.mark.parametrize("which", ["ours", "hpa", "kpa", "ray", "tpa", "oracle"])
def test_a_replay_tells_figures_and_draws_them(which):
    outcome = replay(work(minutes=3), policy(), which, 20.0, np.random.default_rng(2), np.random.default_rng(1))

    assert outcome.cost >= 2 * 180
    lines = text_plot(outcome, 60).splitlines()
    assert [line.split()[0] for line in lines] == ["requests/s", "replicas", "late/s"]
    assert all(len(line) < 90 for line in lines)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'vpa' is not known"):
        replay(work(minutes=1), policy(), "vpa", 20.0, np.random.default_rng(2), np.random.default_rng(1))
