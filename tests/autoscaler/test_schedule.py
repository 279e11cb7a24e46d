from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from autoscaler.policy import recommend
from autoscaler.schedule import bounds, is_open, latest, parse
from autoscaler.state import State
from autoscaler.types import Sample, Schedule, Supply

WORK = Schedule("0 8 * * mon-fri", "0 18 * * mon-fri", min_replicas=4, max_replicas=9)
MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


def at(hour, minute=0, day=0):
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(at(7, 59), False), (at(8), True), (at(17, 59), True), (at(18), False), (at(12, day=5), False)],
)
def test_a_window_is_open_from_its_start_to_its_end_on_its_days(time, expected):
    assert is_open(WORK, time) is expected


def test_a_window_may_span_midnight_and_the_weekend():
    night = Schedule("30 22 * * *", "15 6 * * *", min_replicas=1)
    assert is_open(night, at(23)) and is_open(night, at(6, 14)) and not is_open(night, at(6, 15))

    weekend = Schedule("0 20 * * fri", "0 6 * * mon", min_replicas=1)
    assert is_open(weekend, at(3, day=6)) and not is_open(weekend, at(6, day=7)) and not is_open(weekend, at(19, day=4))


@pytest.mark.parametrize(
    ("expression", "time", "expected"),
    [
        ("*/20 * * * *", at(9, 45), at(9, 40)),
        ("5 9-17/4 * * *", at(12), at(9, 5)),
        ("0 0 1 jan *", at(12), datetime(2026, 1, 1, tzinfo=UTC)),
        ("0 12 29 2 *", at(12), datetime(2024, 2, 29, 12, tzinfo=UTC)),
        ("0 0 * * 7", at(12), datetime(2026, 3, 1, tzinfo=UTC)),
        ("0 0 13 * fri", at(12), datetime(2026, 2, 27, tzinfo=UTC)),
        ("0 0 31 2 *", at(12), None),
    ],
)
def test_when_an_expression_last_fired(expression, time, expected):
    assert latest(parse(expression), time.replace(tzinfo=None)) == (expected and expected.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 8 * *", "has 4 fields; give five"),
        ("60 8 * * *", "cron field minute: '60' is not known; give 0 to 59"),
        ("0 8 * * funday", "cron field day of week: 'funday' is not known; give 0 to 7 or sun to sat"),
        ("*/0 * * * *", "the step '0' is not a whole number above 0"),
        ("0 18-8 * * *", "the range '18-8' runs backwards"),
        ("0 8 * * mon-", "cron field day of week: '' is not known"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_mend(expression, words):
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        parse(expression)


def test_a_zone_has_its_own_clock():
    tokyo = timezone(timedelta(hours=9))
    there = Schedule(WORK.start, WORK.end, 4, zone=tokyo)

    assert is_open(there, at(0)) and not is_open(there, at(9))


def test_the_greatest_min_and_the_least_max_of_open_windows_hold():
    noon = Schedule("0 12 * * *", "0 13 * * *", min_replicas=12)

    assert bounds((WORK, noon), 1, 20, at(7), 0.0)[:2] == (1, 20)
    assert bounds((WORK, noon), 1, 20, at(9), 0.0)[:2] == (4, 9)
    assert bounds((WORK, noon), 1, 20, at(12, 30), 0.0)[:2] == (12, 12), "a max is never below the min"


def test_a_min_is_asked_for_a_start_ahead_and_a_max_is_not():
    assert bounds((WORK,), 1, 20, at(7, 59), 90.0)[:2] == (4, 20)
    assert bounds((WORK,), 1, 20, at(7, 58), 90.0)[:2] == (1, 20)


def call(policy, time, *, ready=1, state=None, now=1000.0, arrivals=5):
    sample = Sample(1.0, arrivals, arrivals, 0.5, 0.0)
    return recommend(policy, Supply(ready, 0, 0, 30.0), sample, state or State.initial(now - 1.0), now, time)


def test_a_window_decides_and_says_so(policy):
    scheduled = policy(schedules=(WORK,))

    inside, _ = call(scheduled, at(9))
    assert (inside.replicas, inside.signal) == (4, "schedule")
    assert "open from '0 8 * * mon-fri' to '0 18 * * mon-fri'" in inside.reasons[-1]
    outside, _ = call(scheduled, at(20))
    assert outside.replicas == 1


def test_schedules_without_a_time_are_an_error(policy):
    with pytest.raises(ValueError, match="has schedules and no time is given"):
        call(policy(schedules=(WORK,)), None)
    with pytest.raises(ValueError, match="has no zone"):
        call(policy(schedules=(WORK,)), at(9).replace(tzinfo=None))


def test_advice_is_marked_and_starts_from_what_really_runs(policy):
    advisory = policy(advisory=True)
    state, now = None, 1000.0
    for _ in range(20):
        now += 1.0
        advice, state = call(advisory, None, state=state, now=now, arrivals=90)

    assert advice.advisory and advice.replicas >= 5
    assert advice.previous == 1, "nobody acted on it"
    assert advice.reasons[-1] == "advisory: shown and recorded, not acted on"
