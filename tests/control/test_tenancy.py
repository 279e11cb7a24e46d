"""Tenants and keys in the controller: what is stored, what is sent, and what is shown."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from gateway.limits import Limits
from gateway.tenants import Tenants
from gateway.wire import Report, Settings, TenantCounters
from tangram.control.facade import NotFound
from tangram.control.store import Store, holds_keys
from tangram.control.tenancy import Tenancy
from tangram.spec import SpecError, Tenant


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "t.db")


class Office:
    def __init__(self, store: Store, *, require_key: bool = False) -> None:
        self.sent: list[Settings] = []
        self.it = Tenancy(store, self.sent.append, require_key=require_key)
        self.store = store

    def put(self, name: str, **spec: object) -> None:
        tenant = Tenant.model_validate(
            {"apiVersion": "tangram.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec}
        )
        self.store.put_tenant(tenant)
        self.it.tenants[name] = tenant

    def gateway(self) -> Tenants:
        """A worker that follows."""
        self.it.publish(None)
        worker = Tenants(Limits())
        worker.apply(self.sent[-1])
        return worker


def test_a_key_is_shown_once_and_kept_as_its_digest(store: Store, tmp_path: Path) -> None:
    office = Office(store)
    office.put("acme")
    made = office.it.create("acme", 5.0)
    (kept,) = store.tenant_keys()
    assert kept.sha256 == hashlib.sha256(made.key.encode()).hexdigest()
    assert office.gateway().identify(made.key).name == "acme"  # type: ignore[union-attr]
    store.close()
    assert made.key.encode() not in (tmp_path / "t.db").read_bytes()
    assert holds_keys(tmp_path / "t.db")
    assert not holds_keys(tmp_path / "none.db")


def test_a_controller_that_starts_again_knows_them(store: Store) -> None:
    office = Office(store)
    office.put("acme", priority=3)
    made = office.it.create("acme", 5.0)
    again = Office(store).gateway()
    assert again.identify(made.key).claim.priority == 3  # type: ignore[union-attr]


def test_revoking_the_last_key_opens_nothing(store: Store) -> None:
    office = Office(store)
    office.put("acme")
    made = office.it.create("acme", 5.0)
    office.it.revoke(made.id)
    worker = office.gateway()
    assert worker.require_key
    assert worker.identify(made.key).status == 401  # type: ignore[union-attr]


def test_a_gateway_for_others_is_closed_without_tenants_too(store: Store) -> None:
    assert not Office(store).gateway().require_key
    assert Office(store, require_key=True).gateway().require_key


def test_what_is_not_there_and_what_a_document_declares(store: Store) -> None:
    office = Office(store)
    office.put("acme", keys=[{"id": "0a0a0a0a", "sha256": "0" * 64}])
    with pytest.raises(NotFound, match="acme"):
        office.it.create("other", 1.0)
    with pytest.raises(NotFound):
        office.it.revoke("0b0b0b0b")
    with pytest.raises(SpecError, match="declared by Tenant acme"):
        office.it.revoke("0a0a0a0a")
    assert [k.created_at for k in office.it.key_views()] == [None]
    assert [t.keys for t in office.it.views()] == [1]
    office.it.delete("acme")
    assert office.it.key_views() == []


def test_no_two_limits_share_a_place_in_shared_memory(store: Store) -> None:
    office = Office(store)
    for name in ("a", "b"):
        office.put(name, limits={"concurrency": 1}, modelLimits={"m": {"concurrency": 1}})
    office.it.publish(None)
    slots = [limit.slot for tenant in office.sent[-1].tenants for limit in tenant.limits]
    assert len(set(slots)) == 4
    assert min(slots) > 4000


def used(epoch: str, requests: int) -> Report:
    counters = TenantCounters(
        name="acme", requests=(("m", 200, requests), ("m", 502, 1)), seconds=(("m", 2.5),), refused=(("forbidden", 3),)
    )
    return Report(worker=0, epoch=epoch, uptime_s=1.0, applied=(1, 1), tenants=(counters,))


def test_what_was_used_outlives_workers_and_controllers(store: Store) -> None:
    office = Office(store)
    office.put("acme")
    office.it.usage.report(used("a", 4), 0.0)
    office.it.keep(["a"], 0.0)
    again = Office(store)
    again.it.usage.report(used("a", 6), 1.0)
    again.it.usage.report(used("b", 1), 1.0)
    again.it.keep(["b"], 2.0)
    (view,) = Office(store).it.views()
    assert (view.usage.requests, view.usage.errors, view.usage.seconds) == (9, 2, 5.0)
    assert view.usage.refused == {"forbidden": 6}
    (model,) = view.usage.models
    assert (model.model, model.codes) == ("m", {"200": 7, "502": 2})


def test_a_tenants_usage_goes_with_it(store: Store) -> None:
    office = Office(store)
    office.put("acme")
    office.it.usage.report(used("a", 4), 0.0)
    office.it.keep(["a"], 0.0)
    office.it.delete("acme")
    # A worker that has not heard of it yet.
    office.it.usage.report(used("a", 5), 0.0)
    office.it.keep(["a"], 1.0)
    office.put("acme")
    assert Office(store).it.views()[0].usage.requests == 0


def test_what_could_not_be_recorded_is_recorded_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(store)
    office.put("acme")
    office.it.usage.report(used("a", 4), 0.0)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_usage", full)
        with pytest.raises(sqlite3.Error):
            office.it.keep(["a"], 0.0)
    office.it.keep(["a"], 1.0)
    assert Office(store).it.views()[0].usage.requests == 5
