from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangram.cli import show
from tangram.cli.client import connect
from tangram.console import tables

Tangram = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("running")


def rows(text: str) -> list[dict[str, str]]:
    """A plain table as dictionaries by title."""
    head, *lines = text.rstrip("\n").splitlines()
    starts = [i for i, c in enumerate(head) if c != " " and (i == 0 or head[i - 1] == " ")]
    ends = [*starts[1:], None]
    return [{head[a:b].strip(): line[a:b].strip() for a, b in zip(starts, ends, strict=True)} for line in lines]


def test_get_models(tangram: Tangram) -> None:
    (row,) = rows(tangram("get", "models").out)
    expected = {"NAME": "digits", "READY": "1", "DESIRED": "1", "RANGE": "1-4", "QPS": "41.2", "TARGET": "20"}
    assert expected.items() <= row.items()
    assert row["STATUS"] == "Ready"
    assert row["AGE"]


@pytest.mark.parametrize("what", ["models", "model", "M", "replicas", "r", "devices", "decisions", "events"])
def test_the_plain_tables_fit_eighty_columns(tangram: Tangram, what: str) -> None:
    ran = tangram("get", what)
    assert ran.code == 0
    lines = ran.out.splitlines()
    # Free text is cut at a terminal's edge only.
    assert len(lines[0]) <= 80
    if what not in ("decisions", "events"):
        assert max(map(len, lines)) <= 80


def test_wide_tables_say_more(tangram: Tangram) -> None:
    (plain,), (wide,) = rows(tangram("get", "replicas").out), rows(tangram("get", "replicas", "-o", "wide").out)
    assert plain["MEMORY"] == "61Mi/128Mi"
    assert set(plain) < set(wide)
    assert (wide["PID"], wide["CPU"], wide["LIMIT"]) == ("4242", "32%", "256Mi")


def test_get_as_data(tangram: Tangram) -> None:
    listed = json.loads(tangram("get", "models", "-o", "json").out)
    assert [m["name"] for m in listed["items"]] == ["digits"]
    one = json.loads(tangram("get", "model", "digits", "-o", "json").out)
    assert one == listed["items"][0]
    assert yaml.safe_load(tangram("get", "devices", "-o", "yaml").out)["items"][0]["id"] == "node-a/gpu-0"
    assert tangram("get", "replicas", "-o", "name").out == "replica/digits-7f3a1\n"


def test_get_by_name(tangram: Tangram, facade: Any, fakes: Any) -> None:
    facade.replica_views.append(fakes.a_replica("digits-2"))
    facade.decision_views.append(fakes.a_decision(6, "other"))
    assert [r["NAME"] for r in rows(tangram("get", "replicas", "digits-2").out)] == ["digits-2"]
    assert [r["NAME"] for r in rows(tangram("get", "devices", "node-a/gpu-0").out)] == ["node-a/gpu-0"]
    assert [r["ID"] for r in rows(tangram("get", "decisions", "digits").out)] == ["7"]
    assert [r["ID"] for r in rows(tangram("get", "decisions", "--limit", "1").out)] == ["7"]
    assert len(rows(tangram("get", "replicas", "--model", "digits").out)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("get", "models", "nope"), "no model 'nope'; there is digits"),
        (("get", "replicas", "nope"), "no replica 'nope'; there are: digits-7f3a1"),
        (("get", "replicas", "-m", "nope"), "no model 'nope'"),
        (("describe", "nope"), "no model 'nope'"),
        (("explain", "NOPE"), "no model can be named 'NOPE'"),
        (("logs", "nope"), "no replica 'nope'"),
    ],
)
def test_what_is_not_there_is_one_line_and_code_1(tangram: Tangram, arguments: tuple[str, ...], said: str) -> None:
    ran = tangram(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert said in ran.err


@pytest.mark.parametrize(
    "arguments", [("get", "colours"), ("get", "models", "-o", "xml"), ("get",), ("describe", "replica", "x"), ("fly",)]
)
def test_bad_usage_is_code_2(tangram: Tangram, arguments: tuple[str, ...]) -> None:
    ran = tangram(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_nothing_to_show_is_said(tangram: Tangram, facade: Any) -> None:
    facade.replica_views.clear()
    assert tangram("get", "replicas").out == "no replicas\n"


def test_describe(tangram: Tangram) -> None:
    text = tangram("describe", "model", "digits").out
    for part in ("Name:         digits", "128Mi, up to 128Mi", "20 a replica (honour)", "digits-7f3a1", "pid 4242"):
        assert part in text
    assert text.splitlines()[0] == tangram("describe", "model/digits").out.splitlines()[0]
    assert json.loads(tangram("describe", "digits", "-o", "json").out)["spec"]["metadata"]["name"] == "digits"


def test_explain_tells_demand_signals_placement_and_what_was_rejected(tangram: Tangram) -> None:
    text = tangram("explain", "digits").out
    for part in (
        "71.2 requests a second",
        "* qps: 71.2/s, 20/s a replica: 4 replicas",
        "cpu: missing (no replica could be measured)",
        "4 replicas wanted, 2 there at the time, room for 3",
        "digits-7f3a1 (Ready) holds 128Mi, 20% of node-a/gpu-0",
        "What found no place (1 replica)",
        "compute, 10% missing",
        "start digits-9b2c4 on node-a/gpu-1",
    ):
        assert part in text


def test_explain_tells_where_a_replica_went_and_what_was_weighed(tangram: Tangram, facade: Any, fakes: Any) -> None:
    facade.replica_views.append(fakes.a_replica("digits-9b2c4", device="node-a/gpu-1", phase="Starting"))
    text = tangram("explain", "digits").out
    assert "least left over that no model could use\n" in text
    assert "node-a/gpu-0: holds 1 replica of digits already" in text


def test_status(tangram: Tangram, running: str) -> None:
    text = tangram("status").out
    assert running in text
    assert "term 3" in text
    assert "3.17" in text


def test_top_once_shows_everything(tangram: Tangram) -> None:
    text = tangram("top", "--once").out
    for part in ("digits", "node-a/gpu-0", "128Mi/1000Mi", "41.2 req/s", "1/1 gateway workers", "digits-7f3a1"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_logs(tangram: Tangram, facade: Any, tmp_path: Path) -> None:
    (tmp_path / "digits-7f3a1.log").write_bytes(b"one\ntwo\nthree \xc3\xa9\n")
    assert tangram("logs", "digits-7f3a1", "--tail", "2").out == "two\nthree é\n"
    facade.replica_views.clear()
    assert tangram("logs", "digits-7f3a1", "-f").out == "one\ntwo\nthree é\n"


def test_a_watch_shows_what_changes(facade: Any, fakes: Any) -> None:
    fetch = show.fetch_of(connect(), tables.REPLICAS, None, None, None)
    looks = itertools.count()

    def change(_: float) -> None:
        if next(looks) == 1:
            facade.replica_views.append(fakes.a_replica("digits-2", phase="Starting"))

    shown = show.watch(fetch, tables.REPLICAS, None, sleep=change)
    assert [r["NAME"] for r in rows(next(shown))] == ["digits-7f3a1"]
    second = next(shown)
    assert second.startswith("digits-2")
    assert "digits-7f3a1" not in second
    assert next(looks) == 2


def test_a_watch_of_events_goes_forward_in_time(facade: Any, fakes: Any) -> None:
    older = fakes.EventView(at=fakes.NOW - 60, model="digits", reason="Placed", message="on node-a/gpu-0")
    facade.event_views.append(older)
    fetch = show.fetch_of(connect(), tables.EVENTS, None, None, None)
    first = next(show.watch(fetch, tables.EVENTS, None, sleep=lambda _: None))
    assert [r["REASON"] for r in rows(first)] == ["Placed", "Started"]
