from __future__ import annotations

from typing import Any

import pytest

from tangram.console.describe import describe, status


@pytest.fixture
def facade(fakes: Any) -> Any:
    facade = fakes.FakeFacade()
    document = fakes.model_document(replicas=3, metrics=[{"type": "cpu", "target": 70}])
    document["metadata"]["labels"] = {"team": "vision"}
    document["spec"]["slice"]["deviceSelector"] = {"models": ["virtual"], "matchLabels": {"rack": "a"}}
    facade.specs_by_name["digits"] = fakes.parse_documents([document]).models[0]
    return facade


def test_what_was_declared_and_what_is(facade: Any, fakes: Any) -> None:
    text = describe(facade.describe("digits"), fakes.NOW)
    for part in (
        "team=vision",
        "virtual, rack=a",
        "3 desired (set by hand to 3)",
        "cpu 70",
        "embedded digits.py (oip)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("hedge", "told"),
    [
        ({}, "slower than 95% of the last, at most 10% of the requests"),
        ({"afterSeconds": 0.2, "maxPercent": 5}, "after 0.2s, at most 5% of the requests"),
        (None, None),
    ],
)
def test_hedging_is_shown_where_there_is_any(facade: Any, fakes: Any, hedge: Any, told: str | None) -> None:
    document = fakes.model_document()
    document["spec"]["traffic"] = {"hedge": hedge}
    facade.specs_by_name["digits"] = fakes.parse_documents([document]).models[0]
    lines = [line for line in describe(facade.describe("digits"), fakes.NOW).splitlines() if "Hedging:" in line]
    assert [line.partition(":")[2].strip() for line in lines] == ([told] if told else [])


def test_empty_tables_say_none(facade: Any, fakes: Any) -> None:
    lines = describe(facade.describe("digits"), fakes.NOW).splitlines()
    for title in ("Replicas:", "Decisions:", "Events:"):
        assert lines[lines.index(title) + 1] == "  none"


def test_it_fits_the_terminal(facade: Any, fakes: Any) -> None:
    facade.decision_views.append(fakes.a_decision())
    facade.event_views.append(fakes.EventView(at=fakes.NOW, model="digits", reason="Failed", message="x " * 200))
    assert max(map(len, describe(facade.describe("digits"), fakes.NOW, width=80).splitlines())) <= 80


def test_status_shows_what_is_wrong(facade: Any, fakes: Any) -> None:
    view = facade.status()
    worker = view.workers[0].model_copy(update={"connected": False})
    troubled = view.model_copy(update={"adopting": True, "oversold": ("node-a/gpu-0",), "workers": (worker,)})
    text = status(troubled, "http://127.0.0.1:8081", fakes.NOW)
    assert "adopting" in text
    assert "Oversold:     node-a/gpu-0" in text
    assert "3.17, not connected" in text
    assert "adopting" not in status(view, "", fakes.NOW)
