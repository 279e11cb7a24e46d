"""A replica's life as its process is seen: a timeline a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packer.inventory import Placement, SliceRequest
from tangram.core.replica import PROVEN_AFTER_S, RESTART_DELAYS_S, Observation, Phase, Replica, observe

NEW = Replica(
    name="m-1",
    model="m",
    revision="r",
    placement=Placement(SliceRequest("m-1", "m", 100), "n/gpu-0", "n"),
    created_at=0.0,
)
ALIVE = Observation(alive=True, pid=7, start_ticks=70, started_at=1.0)
UP = replace(ALIVE, ready=True)


def seen(replica: Replica, what: Observation, now: float) -> Replica:
    after, _ = observe(replica, what, now)
    assert after is not None
    return after


def test_it_becomes_ready_and_unready_and_ready_again() -> None:
    starting = seen(NEW, replace(ALIVE, message="connection refused"), 2.0)
    assert (starting.phase, starting.pid, starting.message) == (Phase.STARTING, 7, "connection refused")
    ready, change = observe(starting, UP, 3.0)
    assert ready is not None
    assert change is not None
    assert (ready.phase, ready.ready_at, ready.message, change.message) == (Phase.READY, 3.0, "", "ready after 2.0 s")
    unready = seen(ready, replace(ALIVE, message="timed out"), 9.0)
    assert (unready.phase, unready.since, unready.message) == (Phase.UNREADY, 9.0, "timed out")
    again = seen(unready, UP, 10.0)
    assert (again.phase, again.since, again.ready_at) == (Phase.READY, 10.0, 3.0)


def test_what_has_not_changed_stays_the_same_object_or_equal() -> None:
    ready = seen(NEW, UP, 3.0)
    assert observe(ready, UP, 4.0) == (ready, None)


def test_crashes_in_a_row_wait_longer_and_one_that_proved_itself_begins_anew() -> None:
    replica, delays = NEW, []
    for turn in range(13):
        now = 1000.0 * turn
        replica = replace(replica, phase=Phase.STARTING)
        replica = seen(replica, Observation(alive=False, exit_code=1), now)
        assert replica.phase is Phase.CRASHED
        assert replica.retry_at is not None
        delays.append(replica.retry_at - now)
    assert delays == [*RESTART_DELAYS_S, RESTART_DELAYS_S[-1], RESTART_DELAYS_S[-1]]
    ready = seen(replica, UP, 20_000.0)
    crashed = seen(ready, Observation(alive=False, exit_code=1), 20_000.0 + PROVEN_AFTER_S)
    assert (crashed.crashes, crashed.retry_at) == (1, 20_000.0 + PROVEN_AFTER_S)


def test_the_deadline_runs_from_the_crash_that_ended_readiness_and_not_from_each_start() -> None:
    first = seen(NEW, Observation(alive=False, exit_code=1), 5.0)
    assert first.progress_since == 0.0
    ready = seen(first, UP, 6.0)
    assert seen(ready, Observation(alive=False, exit_code=1), 50.0).progress_since == 50.0


@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.DRAINING])
def test_one_on_its_way_out_is_gone_when_its_process_is(phase: Phase) -> None:
    after, change = observe(replace(NEW, phase=phase), Observation(alive=False, exit_code=0), 1.0)
    assert after is None
    assert change is not None
    assert change.reason == "Stopped"


@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.DRAINING])
def test_one_on_its_way_out_never_comes_back_by_answering(phase: Phase) -> None:
    assert seen(replace(NEW, phase=phase), UP, 1.0).phase is phase


def test_the_end_of_an_earlier_process_says_nothing_of_the_one_that_runs() -> None:
    running = replace(NEW, started_at=10.0, pid=8)
    assert observe(running, Observation(alive=False, exit_code=1, started_at=4.0), 11.0) == (running, None)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (Observation(alive=False, exit_code=-9), "process was ended by signal 9"),
        (Observation(alive=False, exit_code=3, message="no file"), "process exited with code 3: no file"),
        (Observation(alive=False, message="not found again"), "process ended: not found again"),
        (Observation(alive=False, started=False, message="no such command"), "process did not start: no such command"),
    ],
)
def test_how_it_ended_in_words(what: Observation, text: str) -> None:
    assert seen(NEW, what, 1.0).message == text
