from __future__ import annotations

from typing import Any

import pytest

from tangram.console import tables
from tangram.control.views import ConditionView


def test_every_view_has_a_kind_found_by_its_names() -> None:
    assert tables.kind_of("Models") is tables.MODELS
    assert tables.kind_of("replica") is tables.REPLICAS
    assert tables.kind_of("ev") is tables.EVENTS
    assert tables.kind_of("colours") is None
    words = [w for k in tables.KINDS for w in (k.plural, k.singular, *k.short)]
    assert len(set(words)) == len(words)


def test_columns_are_aligned() -> None:
    lines = tables.plain(["NAME", "N"], [["a", "1"], ["longer", "22"]]).splitlines()
    assert lines == ["NAME    N", "a       1", "longer  22"]


def test_only_the_last_column_is_cut_and_never_to_nothing() -> None:
    row = ["digits-7f3a1", "x" * 100]
    head, line = tables.plain(["NAME", "MESSAGE"], [row], width=80).splitlines()
    assert (len(line), line[-1]) == (80, "…")
    assert head == "NAME          MESSAGE"
    narrow = tables.plain(["NAME", "MESSAGE"], [row], width=20).splitlines()[1]
    assert narrow.startswith("digits-7f3a1  xxxxxxxxxxxxxxxxxxxx")
    assert tables.plain(["NAME", "MESSAGE"], [row]).endswith("x" * 100)


def test_free_text_takes_a_column_only_where_there_is_some(fakes: Any) -> None:
    quiet, loud = fakes.a_replica(), fakes.a_replica("b", message="exit code 1:\n  no  module")
    assert "MESSAGE" not in tables.table(tables.REPLICAS, [quiet], fakes.NOW)
    text = tables.table(tables.REPLICAS, [quiet, loud], fakes.NOW)
    assert "MESSAGE" in text
    assert text.endswith("exit code 1: no module")
    assert len(text.splitlines()) == 3


def test_what_is_not_known_is_a_dash(fakes: Any) -> None:
    replica = fakes.a_replica(memory=None, pid=None, cpu_percent=None, compute=0)
    text = tables.table(tables.REPLICAS, [replica], fakes.NOW, wide=True)
    assert "-/128Mi" in text
    assert "None" not in text


def test_a_replica_that_the_gateway_leaves_out_says_so(fakes: Any) -> None:
    text = tables.table(tables.REPLICAS, [fakes.a_replica(ejected="slow")], fakes.NOW)
    assert "ejected by the gateway: slow" in text


def test_a_decision_shows_what_was_granted_of_what_was_wanted(fakes: Any) -> None:
    text = tables.table(tables.DECISIONS, [fakes.a_decision(), fakes.a_decision(8, granted=4)], fakes.NOW)
    assert "2->3 of 4" in text
    assert "2->4 " in text
    assert "no place: virtual 1024 MiB" in text


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ((("Ready", "True", "ReplicasReady"), ("Placed", "True", "AllPlaced")), "Ready"),
        ((("Ready", "True", "ScaledToZero"),), "ScaledToZero"),
        ((("Ready", "False", "NoReplicaReady"), ("Healthy", "False", "CrashLoopBackOff")), "CrashLoopBackOff"),
        ((("Ready", "True", "ReplicasReady"), ("Placed", "False", "NoFit")), "NoFit"),
        ((("Ready", "False", ""),), "NotReady"),
        ((), "Ready"),
    ],
)
def test_the_status_is_the_reason_of_what_is_wrong(
    fakes: Any, conditions: tuple[tuple[str, Any, str], ...], status: str
) -> None:
    facade = fakes.FakeFacade()
    facade.specs_by_name["digits"] = fakes.parse_documents([fakes.model_document()]).models[0]
    views = tuple(ConditionView(type=t, status=s, reason=r) for t, s, r in conditions)
    assert tables.status_of(facade.model("digits").model_copy(update={"conditions": views})) == status


def test_a_count_set_by_hand_is_marked(fakes: Any) -> None:
    facade = fakes.FakeFacade()
    facade.specs_by_name["digits"] = fakes.parse_documents([fakes.model_document(replicas=3)]).models[0]
    assert "3!" in tables.table(tables.MODELS, facade.models(), fakes.NOW)


def test_advice_stands_beside_the_count_that_is_kept(fakes: Any) -> None:
    facade = fakes.FakeFacade()
    facade.specs_by_name["digits"] = fakes.parse_documents([fakes.model_document()]).models[0]
    model = facade.model("digits")
    kept, same = (model.model_copy(update={"desired": 2, "advised": count}) for count in (5, 2))
    assert "2 (would be 5)" in tables.table(tables.MODELS, [kept], 0.0)
    assert "would be" not in tables.table(tables.MODELS, [same], 0.0)


def test_a_replica_of_several_devices_names_them(fakes: Any) -> None:
    replica = fakes.a_replica(devices=("node-a/gpu-0", "node-a/gpu-1", "node-a/gpu-2"), compute=100)
    short, wide = (tables.table(tables.REPLICAS, [replica], fakes.NOW, wide=w) for w in (False, True))
    assert "node-a/gpu-0 +2" in short and "3x100%" in short
    assert "node-a/gpu-0,node-a/gpu-1,node-a/gpu-2" in wide
