"""What is recorded comes back the same, in whole transactions, and is kept only as long as it should be."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from packer.inventory import Alternative, Placement, SliceRequest
from tangram.control.store import KEPT_EVENTS, KEPT_HISTORY_S, MIGRATIONS, Store, StoreError
from tangram.control.views import DecisionView, EventView
from tangram.core.replica import Phase, Replica
from tangram.spec import Model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tangram.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def a_model(name: str = "digits") -> Model:
    return Model.model_validate(
        {
            "apiVersion": "tangram.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {"runtime": {"model": "/m.py"}, "slice": {"memory": {"request": "100Mi"}}},
        }
    )


def a_replica(name: str = "digits-1") -> Replica:
    request = SliceRequest(name, "digits", 100, 200, 20, labels={"zone": "a"}, avoid=frozenset({"a/gpu-1"}))
    placement = Placement(request, "a/gpu-0", "a", 0.5, "tightest", (Alternative("a/gpu-1", 0.4, "looser"),))
    return Replica(name, "digits", "abcd1234", placement, created_at=12.5, port=20001, slot=3, phase=Phase.READY)


def a_decision(model: str = "digits") -> DecisionView:
    return DecisionView(id=0, at=1.0, model=model, previous=1, wanted=2, granted=2, signal="qps")


def test_specs_and_replicas_come_back_the_same(path: Path, store: Store) -> None:
    store.put_model(a_model(), 5.0)
    store.put_replicas([a_replica(), replace(a_replica("digits-2"), phase=Phase.CRASHED, retry_at=9.0)])
    store.close()
    again = Store(path)
    assert again.models()["digits"].model == a_model()
    assert again.models()["digits"].created_at == 5.0
    assert again.replicas() == [a_replica(), replace(a_replica("digits-2"), phase=Phase.CRASHED, retry_at=9.0)]
    again.close()


def test_a_changed_spec_keeps_its_age(store: Store) -> None:
    store.put_model(a_model(), 5.0)
    store.put_model(a_model(), 50.0)
    assert store.models()["digits"].created_at == 5.0


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.put_replicas([a_replica()])
        raise RuntimeError
    assert store.replicas() == []


def test_terms_grow_over_restarts(path: Path, store: Store) -> None:
    first = store.next_term()
    store.close()
    again = Store(path)
    assert again.next_term() == first + 1
    again.close()


def test_decisions_and_events_come_newest_first_and_by_model(store: Store) -> None:
    for model in ("digits", "ngram", "digits"):
        store.add_decision(a_decision(model))
        store.add_event(EventView(at=1.0, model=model, reason="Ready", message=model))
    assert [d.id for d in store.decisions(None, 10)] == [3, 2, 1]
    assert [d.id for d in store.decisions("digits", 10)] == [3, 1]
    assert len(store.decisions(None, 1)) == 1
    assert [e.model for e in store.events("ngram", 10)] == ["ngram"]


def test_retention(store: Store) -> None:
    with store.transaction():
        for _ in range(KEPT_EVENTS + 5):
            store.add_event(EventView(at=1.0, model="m", reason="r", message=""))
    store.add_history([(0.0, "m", 1, 1, None), (KEPT_HISTORY_S + 50, "m", 2, 1, 3.5)])
    store.retain(KEPT_HISTORY_S + 60)
    assert len(store.events(None, KEPT_EVENTS * 2)) == KEPT_EVENTS
    assert store.history("m", 0.0) == [(KEPT_HISTORY_S + 50, 2, 1, 3.5)]


def test_an_unknown_newer_schema_is_refused(path: Path, store: Store) -> None:
    store.close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StoreError, match="use a newer tangram"):
        Store(path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("not a database, and far too short to be one" * 100)
    with pytest.raises(StoreError, match="move the file away"):
        Store(path)
    assert path.read_text().startswith("not a database")


def test_a_replica_of_several_devices_comes_back_with_all_of_them(path: Path, store: Store) -> None:
    request = SliceRequest("wide-1", "wide", 100, compute=100, labels={}, devices=3, whole=True)
    lies = Placement(request, "a/gpu-2", "a", more_devices=("a/gpu-0", "a/gpu-1"))
    replica = replace(a_replica("wide-1"), model="wide", placement=lies)
    store.put_replicas([replica])
    store.close()
    again = Store(path)
    assert again.replicas() == [replica]
    assert again.replicas()[0].placement.all_devices == ("a/gpu-2", "a/gpu-0", "a/gpu-1")
    again.close()
