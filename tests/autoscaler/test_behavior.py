"""HPA v2's behavior, against the examples of its documentation and of KEP-853."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.behavior import (
    MOST_ENTRIES,
    down_limit,
    propose,
    remember_event,
    remember_high,
    remember_low,
    round_up,
    stabilize,
    up_limit,
)
from autoscaler.defaults import DOWN, UP, RulesSpec, behavior
from autoscaler.types import Behavior, RatePolicy, Rules


def rules(*policies, select="Max", stabilization=0.0, tolerance=0.1):
    return Rules(stabilization, select, tuple(RatePolicy(t, v, float(p)) for t, v, p in policies), tolerance)


HPA_UP = rules(("Percent", 100, 15), ("Pods", 4, 15))
HPA_DOWN = rules(("Percent", 100, 15), stabilization=300.0)


@pytest.mark.parametrize(
    ("given_rules", "current", "events", "limit"),
    [
        # The documentation's default: 4 pods or 100 percent in 15 s, whichever is more.
        (HPA_UP, 1, (), 5),
        (HPA_UP, 4, (), 8),
        (HPA_UP, 10, (), 20),
        # KEP-853: "scale up as fast as possible": 900 percent a minute goes 1, 10, 100, 1000.
        (rules(("Percent", 900, 60)), 1, (), 10),
        (rules(("Percent", 900, 60)), 10, ((0.0, 9),), 100),
        (rules(("Percent", 900, 60)), 100, ((0.0, 9), (0.0, 90)), 1000),
        # KEP-853: "scale up very gradually": one pod in 10 minutes.
        (rules(("Pods", 1, 600)), 2, ((-539.0, 1),), 2),
        (rules(("Pods", 1, 600)), 2, ((-540.0, 1),), 3),
        # A percentage is rounded up, or a single replica could never grow by 10 percent.
        (rules(("Percent", 10, 60)), 1, (), 2),
        (rules(("Percent", 10, 60)), 11, (), 13),
        # What was added and removed within the period counts from the period's start.
        (rules(("Pods", 4, 60)), 12, ((30.0, 3),), 13),
        (rules(("Pods", 4, 60)), 12, ((30.0, 3), (40.0, -2)), 15),
        (rules(("Pods", 4, 60)), 12, ((10.0, 9),), 12),
        # An event exactly as old as the period counts no more.
        (rules(("Pods", 4, 60)), 12, ((0.0, 4),), 16),
        (rules(("Pods", 4, 60)), 12, ((0.1, 4),), 12),
        # selectPolicy.
        (rules(("Percent", 100, 15), ("Pods", 4, 15), select="Min"), 10, (), 14),
        (rules(("Percent", 100, 15), ("Pods", 4, 15), select="Min"), 2, (), 4),
        (rules(("Percent", 100, 15), select="Disabled"), 10, (), 10),
    ],
)
def test_how_far_up(given_rules, current, events, limit):
    assert up_limit(given_rules, current, events, now=60.0) == limit


DOCUMENTED = rules(("Pods", 4, 60), ("Percent", 10, 60))


@pytest.mark.parametrize(
    ("given_rules", "current", "events", "limit"),
    [
        # The documentation's walk from 80 to 10: by percent (7.2 of 72 are rounded up to 8), by pods below 40.
        (DOCUMENTED, 80, (), 72),
        (DOCUMENTED, 72, ((0.0, -8),), 64),
        (DOCUMENTED, 41, (), 36),
        (DOCUMENTED, 40, (), 36),
        (DOCUMENTED, 36, (), 32),
        (DOCUMENTED, 2, (), 0),
        # "at most 5 pods or 10 percent a minute, whichever is less"
        (rules(("Percent", 10, 60), ("Pods", 5, 60), select="Min"), 80, (), 75),
        (rules(("Percent", 10, 60), ("Pods", 5, 60), select="Min"), 30, (), 27),
        (HPA_DOWN, 100, (), 0),
        (rules(("Percent", 100, 15), select="Disabled"), 10, (), 10),
        # Removed already within the period.
        (rules(("Pods", 4, 60)), 10, ((30.0, -3),), 9),
        (rules(("Pods", 4, 60)), 10, ((30.0, -6),), 10),
        (rules(("Percent", 50, 60)), 10, ((30.0, -10),), 10),
        (rules(("Percent", 50, 60)), 10, ((30.0, 10),), 0),
    ],
)
def test_how_far_down(given_rules, current, events, limit):
    assert down_limit(given_rules, current, events, now=60.0) == limit


@pytest.mark.parametrize(
    ("up", "down", "current", "count"),
    [
        # HPA: count = ceil(current * ratio), and none within 10 percent of it.
        (4.0, 4.0, 2, 4),
        (2.2, 2.2, 2, 2),
        (2.21, 2.21, 2, 3),
        (1.0, 1.0, 2, 1),
        (9.0, 9.0, 10, 10),
        (8.99, 8.99, 10, 9),
        (0.0, 0.0, 3, 0),
        (0.01, 0.01, 0, 1),
        (0.0, 0.0, 0, 0),
        # Bounds that lie apart: neither certain enough to add nor to remove.
        (1.0, 5.0, 3, 3),
        (0.0, float("inf"), 3, 3),
        (4.0, float("inf"), 3, 4),
    ],
)
def test_tolerance(up, down, current, count):
    assert propose(up, down, current, Behavior(UP, DOWN)) == count


def test_directions_have_a_tolerance_each():
    both = behavior(RulesSpec(tolerance=0.0), RulesSpec(tolerance=0.5))

    assert propose(10.01, 10.01, 10, both) == 11
    assert propose(5.01, 5.01, 10, both) == 10
    assert propose(4.9, 4.9, 10, both) == 5


def test_a_floating_point_crumb_is_no_replica():
    assert round_up(0.1 * 3 / 0.1) == 3
    assert round_up(3.001) == 4


@pytest.mark.parametrize(
    ("up_s", "down_s", "current", "desired", "history", "count"),
    [
        # Down to the greatest wanted within the window, so the documentation's flapping metric keeps the count.
        (0, 300, 5, 2, [(0, 5), (100, 3), (200, 4)], 5),
        (0, 300, 5, 2, [(-100, 5), (100, 3), (200, 4)], 4),
        (0, 300, 5, 2, [(-200, 5), (-150, 3)], 2),
        # Up to the least wanted within the window.
        (60, 0, 2, 8, [(150, 3), (170, 5)], 3),
        (60, 0, 2, 8, [(100, 3), (170, 5)], 5),
        (60, 0, 4, 8, [(150, 3)], 4),
        (0, 300, 2, 8, [(150, 3)], 8),
        # Exactly as old as the window is outside of it.
        (0, 100, 5, 2, [(99.9, 5)], 2),
        (0, 100, 5, 2, [(100, 5)], 2),
        (0, 100, 5, 2, [(100.1, 5)], 5),
    ],
)
def test_stabilization(up_s, down_s, current, desired, history, count):
    both = behavior(RulesSpec(stabilization_s=up_s), RulesSpec(stabilization_s=down_s))
    highs = lows = ()
    for at, wanted in history:
        highs, lows = remember_high(highs, at, wanted), remember_low(lows, at, wanted)

    assert stabilize(both, current, desired, highs, lows, now=200.0) == count


@given(
    wants=st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 30)), max_size=60),
    current=st.integers(0, 30),
    desired=st.integers(0, 30),
    up_s=st.floats(0, 300),
    down_s=st.floats(0, 300),
)
def test_the_short_history_says_what_the_full_one_would(wants, current, desired, up_s, down_s):
    both = behavior(RulesSpec(stabilization_s=up_s), RulesSpec(stabilization_s=down_s))
    now, highs, lows, full = 0.0, (), (), []
    for gap, wanted in wants:
        now += gap
        full.append((now, wanted))
        highs, lows = remember_high(highs, now, wanted), remember_low(lows, now, wanted)

    # As HPA has it, word for word.
    up = min([desired, *(n for at, n in full if at > now - up_s)])
    down = max([desired, *(n for at, n in full if at > now - down_s)])
    count = current
    count = up if count < up else count
    count = down if count > down else count

    assert stabilize(both, current, desired, highs, lows, now) == count


def test_histories_stay_bounded_and_err_on_the_side_of_holding():
    highs = lows = events = ()
    for i in range(1000):
        highs = remember_high(highs, i * 0.1, 2000 - i)
        lows = remember_low(lows, i * 0.1, i)
        events = remember_event(events, i * 0.1, 1)

    assert max(len(highs), len(lows), len(events)) <= MOST_ENTRIES
    assert highs[0][1] == 2000
    assert lows[0][1] == 0
    assert sum(change for _, change in events) == 1000


def test_what_is_old_is_forgotten():
    assert remember_high(((0.0, 9),), 3600.0, 1) == ((3600.0, 1),)
    assert remember_event(((0.0, 9),), 1800.0, 0) == ()


def test_defaults_fill_in_what_is_absent():
    both = behavior(RulesSpec(stabilization_s=0.0, tolerance=0.0), RulesSpec(select="Disabled", policies=()))

    assert both.up == Rules(0.0, "Max", UP.policies, 0.0)
    assert both.down == Rules(60.0, "Disabled", DOWN.policies, 0.1)
    assert behavior() == Behavior(UP, DOWN)
