"""A rollout as a timeline: what is seen of the replicas, and where it stands then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.wire import EndpointCounters, ModelCounters, Report
from tangram.core.outcomes import OutcomeTracker
from tangram.core.rollout import Rollout, Seen, Stage, advance, canary_count, canary_percent, follow, restored
from tangram.spec import CanaryStep
from tangram.spec import Rollout as Terms

PLAIN = Terms()
STEPS = Terms(canary=(CanaryStep(percent=10, seconds=30), CanaryStep(percent=50, seconds=60)))
DEADLINE_S = 120.0


class Line:
    def __init__(self, terms: Terms = PLAIN) -> None:
        self.terms = terms
        self.now = 1000.0
        self.it: Rollout = follow(None, "old", "new", terms, self.now, direct=False)

    def see(self, seconds: float, **seen: int) -> Rollout:
        self.now += seconds
        found = Seen(**{"count": 4, "new_ready": 0, "old_live": 4, **seen})
        self.it = advance(self.it, self.terms, DEADLINE_S, found, self.now)
        return self.it


def test_without_steps_replicas_are_replaced_at_once():
    line = Line()
    assert line.it.stage is Stage.ROLLING
    line.see(5, new_ready=2, old_live=2)
    assert line.see(5, new_ready=4, old_live=1).stage is Stage.ROLLING
    assert line.see(5, new_ready=4, old_live=0).stage is Stage.COMPLETE
    assert line.see(999, new_ready=0, old_live=0).stage is Stage.COMPLETE


def test_each_step_lasts_its_time_from_when_its_replicas_are_ready():
    line = Line(STEPS)
    assert (line.it.stage, canary_percent(line.it, STEPS), canary_count(line.it, STEPS, 4)) == (Stage.CANARY, 10, 1)
    line.see(50)
    line.see(0, new_ready=1)
    assert line.see(29, new_ready=1).step == 0
    assert line.see(1, new_ready=1).step == 1
    assert (canary_percent(line.it, STEPS), canary_count(line.it, STEPS, 4)) == (50, 2)
    line.see(10, new_ready=1)
    line.see(10, new_ready=2)
    assert line.see(59, new_ready=2).stage is Stage.CANARY
    assert line.see(1, new_ready=2).stage is Stage.ROLLING
    assert canary_percent(line.it, STEPS) is None


def test_a_canary_that_fails_meanwhile_begins_its_step_anew():
    line = Line(STEPS)
    line.see(1, new_ready=1)
    line.see(29, new_ready=0)
    line.see(1, new_ready=1)
    assert line.see(29, new_ready=1).step == 0
    assert line.see(1, new_ready=1).step == 1


@pytest.mark.parametrize("terms", [PLAIN, STEPS])
def test_past_the_progress_deadline_it_goes_back(terms):
    line = Line(terms)
    assert line.see(119).active
    ended = line.see(1)
    assert ended.stage is Stage.ROLLED_BACK
    assert "ready after 120 s" in ended.message


def test_each_replica_that_becomes_ready_begins_the_deadline_anew():
    line = Line()
    for ready in (1, 2, 3):
        assert line.see(100, new_ready=ready, old_live=4 - ready).active
    assert line.see(119, new_ready=3, old_live=1).active
    assert line.see(1, new_ready=3, old_live=1).stage is Stage.ROLLED_BACK


def test_a_drain_that_takes_long_is_no_lack_of_progress():
    line = Line()
    for _ in range(5):
        assert line.see(100, new_ready=4, old_live=1).active


def test_a_model_at_zero_waits_for_its_first_request():
    line = Line()
    assert line.see(9999, count=0, old_live=0).active
    assert line.see(119, count=1, old_live=0).active
    assert line.see(1, count=1, old_live=0).stage is Stage.ROLLED_BACK


def test_more_errors_than_the_spec_allows_end_it():
    terms = STEPS.model_copy(update={"max_error_percent": 5.0})
    line = Line(terms)
    assert line.see(1, new_ready=1, requests=19, failures=19).active
    assert line.see(1, new_ready=1, requests=40, failures=2).active
    ended = line.see(1, new_ready=1, requests=41, failures=3)
    assert ended.stage is Stage.ROLLED_BACK
    assert "3 of 41 requests to revision new failed" in ended.message


def test_where_it_may_not_go_back_it_says_so_and_stays():
    terms = PLAIN.model_copy(update={"automatic_rollback": False})
    line = Line(terms)
    stuck = line.see(120)
    assert stuck.active and "ready after" in stuck.message


def test_the_former_revision_applied_again_cancels_it():
    line = Line(STEPS)
    ended = follow(line.it, "new", "old", STEPS, line.now, direct=False)
    assert ended.stage is Stage.CANCELLED


def test_a_third_revision_takes_the_place_of_the_second():
    line = Line(STEPS)
    line.see(1, new_ready=1)
    third = follow(line.it, "new", "newer", STEPS, line.now, direct=False)
    assert (third.revision, third.former, third.stage, third.ready) == ("newer", "old", Stage.CANARY, 0)
    assert follow(replace(line.it, stage=Stage.COMPLETE), "new", "newer", STEPS, 0.0, direct=False).former == "new"


def test_the_way_back_is_no_canary():
    assert follow(None, "new", "old", STEPS, 0.0, direct=True).stage is Stage.ROLLING


def test_going_back_restores_the_process_and_keeps_the_rest(make_model):
    former = make_model(memory="100Mi", scaling={"maxReplicas": 2})
    current = make_model(memory="300Mi", scaling={"maxReplicas": 7})
    back = restored(current, former)
    assert back.revision == former.revision
    assert back.spec.scaling.max_replicas == 7


def test_outcomes_add_up_over_workers_and_their_lives():
    tracker = OutcomeTracker()

    def report(worker, epoch, requests, failures):
        counters = ModelCounters(
            name="m", endpoints=(EndpointCounters(id="m-1", requests=requests, failures=failures),)
        )
        tracker.report(Report(worker=worker, epoch=epoch, uptime_s=1.0, applied=(1, 1), models=(counters,)))

    report(0, "a", 5, 1)
    report(0, "a", 10, 1)
    report(1, "b", 7, 2)
    report(0, "c", 3, 0)
    assert tracker.of(["m-1"]) == (20, 3)
    tracker.retain(["m-2"])
    assert tracker.of(["m-1"]) == (0, 0)
