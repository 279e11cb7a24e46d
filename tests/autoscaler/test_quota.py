from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.quota import Claim, harm, share, values, weight

claims = st.lists(
    st.builds(
        Claim,
        name=st.integers(0, 1000).map(str),
        wanted=st.integers(0, 8),
        rate=st.floats(0.0, 200.0),
        capacity=st.floats(1.0, 30.0),
        slots=st.sampled_from([1.0, 8.0]),
        priority=st.integers(-2, 2),
        suffered=st.floats(0.0, 1.0),
    ),
    max_size=8,
    unique_by=lambda c: c.name,
)


@given(claims, st.integers(0, 40))
def test_all_is_given_and_nobody_gets_more_than_wanted(asked, replicas):
    grants = share(asked, replicas)

    assert sum(g.replicas for g in grants) == min(replicas, sum(c.wanted for c in asked))
    assert all(g.replicas + g.refused == c.wanted for g, c in zip(grants, asked, strict=True))


@given(claims)
def test_one_more_is_never_worth_more_than_the_one_before(asked):
    for claim in asked:
        worth = values(claim)
        assert all(a >= b - 1e-9 for a, b in pairwise(worth))


@given(claims)
def test_the_values_are_the_steepest_chords_of_the_weighed_harms(asked):
    for claim in asked:
        harms = [
            weight(claim) * (h + 3.0 * max(0.0, h - harm(claim, min(claim.held, claim.wanted))))
            for h in (harm(claim, n) for n in range(claim.wanted + 1))
        ]
        steepest, at = [], 0
        while at < claim.wanted:
            end = max(range(at + 1, claim.wanted + 1), key=lambda n: ((harms[at] - harms[n]) / (n - at), n))
            steepest += [(harms[at] - harms[end]) / (end - at)] * (end - at)
            at = end
        assert values(claim) == pytest.approx(steepest)


def test_nobody_is_starved_and_priority_comes_first():
    asked = [Claim("low", 5, 80.0, 20.0, 8), Claim("high", 5, 80.0, 20.0, 8, priority=1)]

    assert [g.replicas for g in share(asked, 6)] == [1, 5]


def test_who_suffered_is_served_before_who_did_not():
    asked = [Claim("a", 5, 80.0, 20.0, 8), Claim("b", 5, 80.0, 20.0, 8, suffered=0.5)]

    assert [g.replicas for g in share(asked, 6)] == [1, 5]


def test_the_division_leaves_the_least_harm():
    """Every division of 3 to 13 replicas among three models is compared."""
    claims = [Claim("a", 5, 70.0, 20.0, 8.0), Claim("b", 4, 50.0, 20.0, 8.0), Claim("c", 4, 50.0, 20.0, 8.0)]

    for replicas in range(3, 14):
        given = [grant.replicas for grant in share(claims, replicas)]
        least = min(
            sum(harm(claim, n) for claim, n in zip(claims, counts, strict=True))
            for counts in product(range(1, 6), range(1, 5), range(1, 5))
            if sum(counts) <= replicas
        )
        assert sum(harm(claim, n) for claim, n in zip(claims, given, strict=True)) == pytest.approx(least)


def test_replicas_are_not_handed_to_and_fro_for_a_little_more():
    asked = [Claim("a", 4, 60.0, 20.0, 8.0, held=4), Claim("b", 4, 66.0, 20.0, 8.0, held=1)]

    assert [g.replicas for g in share(asked, 5)] == [4, 1]
    assert [g.replicas for g in share([replace(c, held=0) for c in asked], 5)] == [1, 4]
    assert [g.replicas for g in share([asked[0], replace(asked[1], suffered=0.9)], 5)] == [1, 4], "but in turn"


def test_what_waits_has_to_be_served_too():
    claim = Claim("a", 8, 60.0, 20.0, 8.0)

    assert harm(claim, 4) < 0.2 * claim.rate
    assert harm(replace(claim, queued=3600.0), 4) > 0.9 * claim.rate
