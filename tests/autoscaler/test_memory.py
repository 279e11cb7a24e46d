from __future__ import annotations

import copy
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler import capacity, forecast
from autoscaler.defaults import RulesSpec, behavior
from autoscaler.memory import keep, recall
from autoscaler.policy import recommend
from autoscaler.state import State
from autoscaler.types import Sample, ScalingPolicy, Supply

POLICY = ScalingPolicy(0, 20, None, "honour", (), behavior(RulesSpec(), RulesSpec()), 60.0, concurrency_limit=1)


def lived(seconds: int = 900, begin: float = 1000.0) -> tuple[State, float]:
    """A model that was asked twice a second by bursts of five minutes, with replicas that take 0.2 s."""
    state, now, ready = State.initial(begin), begin, 1
    for second in range(seconds):
        now += 1.0
        busy = (second // 100) % 3 == 0
        sample = Sample(1.0, 2 * busy, 2 * busy, 0.4 * busy, 0.0)
        advice, state = recommend(POLICY, Supply(ready, 0, 0, 12.0), sample, state, now)
        ready = max(1, advice.replicas)
    return state, now


LIVED, ENDED = lived()
KEPT = json.loads(json.dumps(keep(LIVED, ENDED)))


def test_what_was_learned_is_known_at_once_on_another_clock() -> None:
    before = capacity.known(LIVED.learned, 1)
    back = recall(KEPT, 50.0, 30.0)
    assert before is not None
    assert capacity.known(back.learned, 1) == before
    assert back.history.sums == LIVED.history.sums
    assert back.history.ends == pytest.approx(LIVED.history.ends - ENDED + 20.0)
    assert [50.0 - at for at in back.onsets] == pytest.approx([ENDED - at + 30.0 for at in LIVED.onsets])
    assert back.started == 50.0, "what is seen begins anew: nothing shrinks before a full window"
    assert back.marks == ()
    assert back.wanted is None


def test_arrivals_go_on_from_where_they_were() -> None:
    """The phases of periods stay in place across the gap, so the forecast is the one that would have been made."""
    back = recall(KEPT, 50.0, 0.0)
    there, here, total = LIVED.history, back.history, LIVED.marks[-1]
    for second in range(1, 60):
        arrivals, covered_s = 2.0 * second, 1.0 * second
        there = forecast.observe(there, total.arrivals + arrivals, total.covered + covered_s, 30.0, ENDED + second)
        here = forecast.observe(here, arrivals, covered_s, 30.0, 50.0 + second)
    a, b = forecast.latest(there), forecast.latest(here)
    assert a is not None and b is not None
    assert (a.middle, a.high) == pytest.approx((b.middle, b.high))


def test_of_another_revision_only_the_arrivals_are_known() -> None:
    back = recall(KEPT, 50.0, 30.0, same=False)
    assert capacity.known(back.learned, 1) is None
    assert back.history.buckets == LIVED.history.buckets


@pytest.mark.parametrize(
    ("data", "gone_s", "why"),
    [
        (None, 1.0, "another version"),
        ({**KEPT, "version": 99}, 1.0, "another version"),
        (KEPT, 1e9, "s old"),
        (KEPT, -1.0, "s old"),
        ({**KEPT, "now": "x"}, 1.0, "no number"),
        ({**KEPT, "kept": {**KEPT["kept"], "more": 1}}, 1.0, "Kept has other fields"),
    ],
)
def test_what_cannot_be_used_is_refused(data: object, gone_s: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        recall(data, 50.0, gone_s)


def _spots(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, item in items for spot in _spots(item, (*path, key)))]


SPOTS = [s for s in _spots(KEPT["kept"]) if s]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SPOTS),
    st.one_of(st.none(), st.text(max_size=9), st.just([]), st.just({}), st.floats(), st.integers(-9, 10**9)),
)
def test_damage_is_refused_or_harmless(spot: tuple[object, ...], value: object) -> None:
    data = copy.deepcopy(KEPT)
    place = data["kept"]
    for key in spot[:-1]:
        place = place[key]
    place[spot[-1]] = value
    try:
        state = recall(data, 50.0, 30.0)
    except ValueError:
        return
    now, draws = 50.0, random.Random(1)
    for _ in range(30):
        now += 1.0
        sample = Sample(1.0, draws.randrange(5), 2, 0.4, 0.0)
        advice, state = recommend(POLICY, Supply(1, 0, 0), sample, state, now)
        assert 0 <= advice.replicas <= 20
        assert advice.capacity is None or math.isfinite(advice.capacity)
