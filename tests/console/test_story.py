from __future__ import annotations

from typing import Any

from tangram.console.story import story
from tangram.control.views import ExplainView, SignalView


def explain(fakes: Any, **fields: Any) -> str:
    """The story of a model whose latest decision is the fakes' own, but for some fields."""
    latest = fakes.a_decision(**fields)
    return story(ExplainView(model="digits", at=fakes.NOW, summary="s", qps=71.25, latest=latest, decisions=(latest,)))


def test_before_the_first_turn_of_the_loop() -> None:
    assert "No turn of the loop has looked at it yet" in story(ExplainView(model="digits", at=0.0, summary="new"))


def test_a_rule_that_decided_is_said_in_words(fakes: Any) -> None:
    text = explain(fakes, signal="max", wanted=4, granted=4, refused=())
    assert "Decided by max, the most it may have (maxReplicas): 4 replicas wanted, 2 there at the time." in text
    assert "What found no place" not in text


def test_units_of_signals(fakes: Any) -> None:
    signals = (
        SignalView(name="cpu", value=83.25, target=70.0, replicas=3),
        SignalView(name="concurrency", value=9.0, target=4.0, replicas=3),
        SignalView(name="custom", value=0.5, target=0.25, replicas=2),
    )
    text = explain(fakes, signals=signals)
    assert "cpu: 83.2%, 70% a replica: 3 replicas" in text
    assert "concurrency: 9 in flight and queued, 4 in flight and queued a replica: 3 replicas" in text
    assert "custom: 0.50, 0.25 a replica: 2 replicas" in text


def test_without_demand_or_replicas(fakes: Any) -> None:
    latest = fakes.a_decision(signals=(), placements=(), actions=(), refused=(), reasons=(), wanted=0, granted=0)
    text = story(ExplainView(model="digits", at=fakes.NOW, summary="s", latest=latest))
    assert "no full window was measured yet" in text
    assert "It has no replicas." in text
    assert text.endswith("nothing")


def test_advice_is_said_with_what_is_kept(fakes: Any) -> None:
    text = explain(fakes, previous=2, wanted=5, desired=2, granted=2, refused=())
    assert "it would be 5 replicas, 2 there at the time; advisory, so 2 are kept" in text
    assert "room for" not in text


def test_which_devices_a_replica_spans_and_how_they_are_linked(fakes: Any) -> None:
    devices = ("node-a/gpu-2", "node-a/gpu-3")
    replica = fakes.a_replica(
        devices=devices, device=devices[0], memory_request=2048, links="2 devices joined by 4 NVLinks"
    )
    latest = fakes.a_decision()
    text = story(ExplainView(model="digits", at=fakes.NOW, summary="s", latest=latest, replicas=(replica,)))
    assert "holds node-a/gpu-2, node-a/gpu-3 whole (2Gi): 2 devices joined by 4 NVLinks" in text
