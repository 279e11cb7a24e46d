"""What is kept of one turn for one model."""

from __future__ import annotations

from autoscaler.types import Recommendation
from packer.inventory import ClassRefusal, NoFit, Placement, SliceRequest
from tangram.core.decision import decide
from tangram.core.plans import Drain, Plan, Start, Stop, Undrain
from tangram.core.replica import Replica

REQUEST = SliceRequest("m-2", "m", 100)
PLACED = Placement(REQUEST, "n/gpu-0", "n", 0.5, "tightest")
REPLICA = Replica("m-2", "m", "r", PLACED, created_at=0.0)


def wanted(count: int) -> Recommendation:
    return Recommendation(replicas=count, signal="qps", previous=1)


def test_it_holds_the_models_own_actions_in_words() -> None:
    plan = Plan(
        actions=(
            Drain("m-1", "m", "too many"),
            Stop("other-1", "other", "gone"),
            Undrain("m-3", "m", "wanted again"),
            Start(REPLICA, "2 wanted (qps)"),
        )
    )
    decision = decide(5.0, "m", wanted(2), 2, plan, live=2)
    assert decision.actions == (
        "drain m-1: too many",
        "undrain m-3: wanted again",
        "start m-2 on n/gpu-0: 2 wanted (qps)",
    )
    assert decision.placements == (PLACED,)
    assert (decision.granted, decision.eventful) == (2, True)


def test_a_restart_places_nothing() -> None:
    decision = decide(5.0, "m", wanted(1), 1, Plan(actions=(Start(REPLICA, "again", again=True),)), live=1)
    assert decision.placements == ()
    assert decision.eventful


def test_equal_refusals_are_counted_and_waiting_is_kept_apart() -> None:
    refusal = NoFit(REQUEST, (ClassRefusal("virtual", 2, "memory", text="100 MiB wanted, 50 free"),))
    plan = Plan(refusals={"m": (refusal, refusal, refusal)}, waiting={"m": "next attempt in 10 s"})
    decision = decide(5.0, "m", wanted(4), 4, plan, live=1)
    assert decision.refused == (f"{refusal} (3 replicas)",)
    assert decision.waiting == "next attempt in 10 s"
    assert (decision.granted, decision.eventful) == (1, False)
    assert decide(5.0, "other", wanted(4), 4, plan, live=1).refused == ()


def test_what_is_granted_is_never_more_than_was_wanted() -> None:
    assert decide(5.0, "m", wanted(1), 1, Plan(), live=3).granted == 1


def test_in_advisory_mode_what_is_granted_is_of_the_count_that_is_kept() -> None:
    decision = decide(5.0, "m", wanted(4), 2, Plan(), live=2)
    assert (decision.recommendation.replicas, decision.desired, decision.granted) == (4, 2, 2)
