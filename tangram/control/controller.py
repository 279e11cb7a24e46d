"""The controller as the admin API sees it: reads come from memory and the store, writes record and nudge the loop."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packer.inventory import ClassRefusal, Device, Inventory
from packer.verify import verify
from tangram import __version__
from tangram.control import present
from tangram.control.facade import ModelMetrics, NotFound, NotRecorded
from tangram.control.loop import ControlLoop
from tangram.control.state import ControllerState, ModelState, fresh_policy_state
from tangram.control.store import Store
from tangram.control.tenancy import Tenancy
from tangram.control.views import (
    AppliedView,
    ApplyView,
    DecisionView,
    DescribeView,
    DeviceView,
    EventView,
    ExplainView,
    KeyView,
    ModelView,
    NewKeyView,
    ReplicaView,
    RolloutView,
    ScaleRequest,
    StatusView,
    TenantView,
    UndoRequest,
    WorkerView,
)
from tangram.control.wire_server import WireServer
from tangram.core import convert, packing, plans, rollout
from tangram.core.replica import Phase, Replica
from tangram.node.backend import Backend
from tangram.spec import Documents, Fleet, Model, SpecError, Tenant, clashes, parse_documents

log = logging.getLogger("tangram.controller")


class Controller:
    """Implements `tangram.control.facade.Facade`."""

    def __init__(
        self,
        state: ControllerState,
        store: Store,
        backend: Backend,
        wire: WireServer,
        loop: ControlLoop,
        tenancy: Tenancy,
        *,
        term: int,
        gateway: str,
        discovered: Sequence[Device] = (),
    ) -> None:
        self._state = state
        self._store = store
        self._backend = backend
        self._wire = wire
        self._loop = loop
        self._tenancy = tenancy
        self._term = term
        self._gateway = gateway
        self.discovered = discovered
        self._started_at = time.time()
        self.adopting = True

    # --- reads ---

    def status(self) -> StatusView:
        return StatusView(
            version=__version__,
            term=self._term,
            adopting=self.adopting,
            gateway=self._gateway,
            workers=tuple(
                WorkerView(
                    index=i,
                    pid=w.hello.pid,
                    port=w.hello.port,
                    admin_port=w.hello.admin_port,
                    connected=w.connected,
                    applied=w.applied,
                )
                for i, w in sorted(self._wire.workers.items())
            ),
            models=len(self._state.models),
            replicas=len(self._state.replicas),
            oversold=self._state.oversold,
            require_key=self._tenancy.require_key,
            started_at=self._started_at,
        )

    def models(self) -> Sequence[ModelView]:
        return [self.model(name) for name in sorted(self._state.models)]

    def model(self, name: str) -> ModelView:
        return present.model_view(self._state, self._entry(name), _monotonic())

    def specs(self) -> Sequence[Model]:
        return [self._state.models[name].model for name in sorted(self._state.models)]

    def describe(self, name: str) -> DescribeView:
        entry = self._entry(name)
        return DescribeView(
            model=self.model(name),
            spec=entry.model,
            replicas=tuple(present.replica_views(self._state, name)),
            events=tuple(self._store.events(name, 20)),
            decisions=tuple(self._store.decisions(name, 5)),
        )

    def explain(self, name: str) -> ExplainView:
        entry = self._entry(name)
        decisions = self._store.decisions(name, 5)
        return present.explain_view(self._state, entry, decisions, time.time(), _monotonic())

    def replicas(self, model: str | None = None) -> Sequence[ReplicaView]:
        if model is not None and not any(r.model == model for r in self._state.replicas.values()):
            self._entry(model)
        return present.replica_views(self._state, model)

    def devices(self) -> Sequence[DeviceView]:
        return present.device_views(self._state)

    def decisions(self, model: str | None = None, limit: int = 50) -> Sequence[DecisionView]:
        self._heard_of(model)
        return self._store.decisions(model, limit)

    def events(self, model: str | None = None, limit: int = 50) -> Sequence[EventView]:
        self._heard_of(model)
        return self._store.events(model, limit)

    def log_path(self, replica: str) -> Path:
        path = self._backend.log_path(replica) if replica and "/" not in replica and replica[0] != "." else None
        if replica in self._state.replicas or (path is not None and path.is_file()):
            return self._backend.log_path(replica)
        names = ", ".join(r.name for r in present.replica_views(self._state)) or "none"
        raise NotFound(f"no replica {replica!r}; there are: {names}")

    def _entry(self, name: str) -> ModelState:
        entry = self._state.models.get(name)
        if entry is None:
            raise NotFound(f"no model {name!r}; there are: {', '.join(sorted(self._state.models)) or 'none'}")
        return entry

    def _heard_of(self, model: str | None) -> None:
        if model is not None and not self._store.knows_model(model):
            self._entry(model)

    def worker_metrics_urls(self) -> Sequence[tuple[int, str]]:
        return [
            (i, f"http://127.0.0.1:{w.hello.admin_port}/metrics")
            for i, w in sorted(self._wire.workers.items())
            if w.connected
        ]

    def controller_metrics(self) -> Sequence[ModelMetrics]:
        return [
            ModelMetrics(
                name=name,
                desired=entry.wanted or 0,
                ready=self._state.count(name, Phase.READY),
                starting=self._state.count(name, Phase.STARTING, Phase.CRASHED, Phase.UNREADY),
                signals=tuple((r.name, r.replicas) for r in entry.recommendation.readings if r.replicas is not None),
            )
            for name, entry in sorted(self._state.models.items())
            if entry.recommendation
        ]

    # --- writes ---

    async def apply(self, documents: Sequence[dict[str, Any]], *, dry_run: bool = False) -> ApplyView:
        if not documents:
            raise SpecError("documents: is empty; send at least one Model, Fleet or Tenant")
        return self.take(parse_documents(documents), dry_run=dry_run)

    def take(
        self,
        documents: Documents,
        *,
        dry_run: bool = False,
        remove: Sequence[str] = (),
        remove_tenants: Sequence[str] = (),
        direct: bool = False,
        ended: Collection[str] = (),
    ) -> ApplyView:
        """Check documents against the fleet and the other specs, record all of them, and nudge the loop.

        `direct` leaves out the canary of a revision that changes. `ended` are replicas whose processes are gone: where
        the fleet no longer holds what was theirs, they are forgotten, and their models get others.
        """
        state = self._state
        fleet = documents.fleet or state.fleet
        inventory = convert.inventory(fleet, self.discovered)
        kept = [
            e.model for n, e in state.models.items() if n not in remove and n not in {m.name for m in documents.models}
        ]
        running = [r for n, r in state.replicas.items() if n not in ended]
        self._check(documents, kept, inventory, running)
        changes: list[AppliedView] = []
        if documents.fleet is not None:
            change = _change(state.fleet, documents.fleet)
            changes.append(AppliedView(kind="Fleet", name=documents.fleet.metadata.name, change=change))
        for model in documents.models:
            former = state.models.get(model.name)
            change = _change(former.model if former else None, model)
            changes.append(AppliedView(kind="Model", name=model.name, change=change))
        for tenant in documents.tenants:
            change = _change(self._tenancy.tenants.get(tenant.name), tenant)
            changes.append(AppliedView(kind="Tenant", name=tenant.name, change=change))
        if not dry_run:
            gone = [n for n in remove if n in state.models]
            if ended and verify(_with(inventory, state.replicas.values())):
                self._forget_replicas(ended)
            self._commit(documents, inventory, gone, remove_tenants, direct=direct)
        return ApplyView(applied=tuple(changes))

    def rediscovered(self, devices: Sequence[Device]) -> None:
        """The machine's GPUs are these now, and as well as this."""
        self.discovered = devices
        self._state.inventory = convert.inventory(self._state.fleet, devices)
        self._loop.nudge()

    def _forget_replicas(self, names: Collection[str]) -> None:
        log.warning("the fleet no longer holds what ended replicas had: %s; others take their places", ", ".join(names))
        with self._recording():
            self._store.delete_replicas(names)
        for name in names:
            del self._state.replicas[name]
            self._backend.forget(name)

    def _check(
        self, documents: Documents, kept: Sequence[Model], inventory: Inventory, running: Sequence[Replica]
    ) -> None:
        problems = []
        if not inventory.devices:
            problems.append("Fleet: is missing and this machine has no GPU; declare virtual nodes and devices")
        elif documents.fleet is not None:
            mend = "it is in use, so scale down first, or set `healthy: false` on the device until nothing lies there"
            problems += [
                f"Fleet {documents.fleet.metadata.name}: spec.nodes: {text}; {mend}"
                for text in verify(_with(inventory, running))
            ]
        if inventory.devices:
            for model in (*documents.models, *(kept if documents.fleet is not None else ())):
                refusal = packing.unplaceable(model, inventory)
                if refusal is not None:
                    field = _slice_field(refusal.refusals)
                    problems.append(
                        f"Model {model.name}: {field}: no device of the fleet could ever hold it: {refusal}"
                    )
        known = {m.name for m in (*documents.models, *kept)}
        problems += [
            f"Model {model.name}: {field}: {name!r} is no other model; declare it or correct the name"
            for model in documents.models
            for field, name in _named(model)
            if name not in known or name == model.name
        ]
        problems += clashes(documents.models, kept)
        if problems:
            raise SpecError("\n".join(problems))

    def _commit(
        self,
        documents: Documents,
        inventory: Inventory,
        remove: Sequence[str],
        remove_tenants: Sequence[str],
        *,
        direct: bool,
    ) -> None:
        now = time.time()
        with self._recording():
            if documents.fleet is not None:
                self._store.put_fleet(documents.fleet)
            for model in documents.models:
                self._store.put_model(model, now)
                self._store.put_revision(model, now)
            for name in remove:
                self._store.delete_model(name)
            for tenant in documents.tenants:
                self._store.put_tenant(tenant)
            for name in remove_tenants:
                self._store.delete_tenant(name)
        if documents.fleet is not None:
            self._state.fleet = documents.fleet
            self._state.inventory = inventory
        for model in documents.models:
            self._put(model, now, direct=direct)
        for name in remove:
            self._forget(name)
        if documents.tenants or remove_tenants or documents.fleet is not None:
            self._tenancy.take(documents.tenants, remove_tenants)
            self._tenancy.publish(self._state.fleet)
        self._loop.nudge()

    def _put(self, model: Model, now: float, *, direct: bool) -> None:
        entry = self._state.models.get(model.name)
        if entry is None:
            entry = ModelState(model, now, fresh_policy_state(model.name, _monotonic()))
            entry.revisions = {model.revision: model}
            self._state.models[model.name] = entry
            return
        before, after = entry.model.revision, model.revision
        if before != after:
            entry.attempts = plans.Attempts()
            entry.rollout = rollout.follow(entry.rollout, before, after, model.spec.rollout, now, direct=direct)
            self._store.put_rollout(model.name, entry.rollout)
            entry.revisions = {r.revision: r.model for r in self._store.revisions(model.name)}
        if entry.model != model:
            entry.model, entry.changed = model, True

    def _forget(self, name: str) -> None:
        self._state.models.pop(name, None)
        self._state.demand.forget(name)

    async def scale(self, name: str, request: ScaleRequest) -> ModelView:
        entry = self._entry(name)
        document = entry.model.model_dump(mode="json", by_alias=True)
        scaling = document["spec"]["scaling"]
        wanted = request.model_dump(exclude_none=True, by_alias=True)
        if not wanted:
            raise SpecError("nothing to change; give replicas, targetQPS, minReplicas or maxReplicas")
        if wanted.get("replicas") == "auto":
            wanted["replicas"] = None
        document["spec"]["scaling"] = {**scaling, **wanted}
        self.take(parse_documents([document]))
        return self.model(name)

    def rollout(self, name: str) -> RolloutView:
        return present.rollout_view(self._state, self._entry(name), self._store.revisions(name))

    async def undo(self, name: str, request: UndoRequest) -> RolloutView:
        entry = self._entry(name)
        others = [r for r in self._store.revisions(name) if r.revision != entry.model.revision]
        running = entry.rollout
        if request.to_revision is not None:
            others = [r for r in others if r.number == request.to_revision]
        elif running is not None and running.active:
            others = [r for r in others if r.revision == running.former]
        else:
            others = [r for r in others if not r.failed]
        if not others:
            wanted = "earlier revision" if request.to_revision is None else f"other revision {request.to_revision}"
            raise SpecError(f"toRevision: model {name!r} has no {wanted} to go back to; see its rollout's revisions")
        self.take(Documents((rollout.restored(entry.model, others[0].model),)), direct=True)
        return self.rollout(name)

    def tenants(self) -> Sequence[TenantView]:
        return self._tenancy.views()

    async def delete_tenant(self, name: str) -> None:
        with self._recording():
            self._tenancy.delete(name)
        self._tenancy.publish(self._state.fleet)

    def keys(self) -> Sequence[KeyView]:
        return self._tenancy.key_views()

    async def create_key(self, tenant: str) -> NewKeyView:
        with self._recording():
            made = self._tenancy.create(tenant, time.time())
        self._tenancy.publish(self._state.fleet)
        return made

    async def revoke_key(self, id: str) -> None:
        with self._recording():
            self._tenancy.revoke(id)
        self._tenancy.publish(self._state.fleet)

    async def delete(self, name: str) -> None:
        self._entry(name)
        with self._recording():
            self._store.delete_model(name)
        self._forget(name)
        self._loop.nudge()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            with self._store.transaction():
                yield
        except sqlite3.Error as error:
            raise NotRecorded(
                f"the change cannot be recorded: {error}; nothing was changed; see to the disk of the state directory"
            ) from error


def _with(inventory: Inventory, replicas: Iterable[Replica]) -> Inventory:
    return Inventory(inventory.nodes, inventory.devices, tuple(r.placement for r in replicas))


def _monotonic() -> float:
    return asyncio.get_running_loop().time()


def _named(model: Model) -> list[tuple[str, str]]:
    """Other models that a model's traffic names: (path of the field, name)."""
    traffic = model.spec.traffic
    named = [(f"spec.traffic.split[{i}].model", target.model) for i, target in enumerate(traffic.split)]
    return [*named, ("spec.traffic.mirror.model", traffic.mirror.model)] if traffic.mirror else named


def _change(former: Model | Fleet | Tenant | None, new: Model | Fleet | Tenant) -> Any:
    return "created" if former is None else ("unchanged" if former == new else "configured")


_FIELDS = {
    "model": "spec.slice.deviceSelector.models",
    "label": "spec.slice.deviceSelector.matchLabels",
    "mechanism": "spec.slice.mechanism",
    "too-many": "spec.slice.devices",
}


def _slice_field(refusals: Sequence[ClassRefusal]) -> str:
    # What is left is too large: for the device itself, or else for what its node has of CPU and memory.
    too_large = ("spec.resources.requests", "spec.slice.memory.request")
    fields = {_FIELDS.get(r.reason, too_large[r.missing_mib > 0]) for r in refusals}
    return fields.pop() if len(fields) == 1 else "spec.slice"
