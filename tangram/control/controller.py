"""The controller as the admin API sees it: reads come from memory and the store, writes record and nudge the loop."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator, Sequence
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
from tangram.control.views import (
    AppliedView,
    ApplyView,
    DecisionView,
    DescribeView,
    DeviceView,
    EventView,
    ExplainView,
    ModelView,
    ReplicaView,
    ScaleRequest,
    StatusView,
    WorkerView,
)
from tangram.control.wire_server import WireServer
from tangram.core import convert, planner
from tangram.core.replica import Phase
from tangram.node.backend import Backend
from tangram.spec import Documents, Fleet, Model, SpecError, parse_documents


class Controller:
    """Implements `tangram.control.facade.Facade`."""

    def __init__(
        self,
        state: ControllerState,
        store: Store,
        backend: Backend,
        wire: WireServer,
        loop: ControlLoop,
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
        self._term = term
        self._gateway = gateway
        self._discovered = discovered
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
                desired=entry.recommendation.replicas,
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
            raise SpecError("documents: is empty; send at least one Model or Fleet")
        return self.take(parse_documents(documents), dry_run=dry_run)

    def take(self, documents: Documents, *, dry_run: bool = False, remove: Sequence[str] = ()) -> ApplyView:
        """Check documents against the fleet and the other specs, record all of them, and nudge the loop."""
        state = self._state
        fleet = documents.fleet or state.fleet
        inventory = convert.inventory(fleet, self._discovered)
        kept = [
            e.model for n, e in state.models.items() if n not in remove and n not in {m.name for m in documents.models}
        ]
        self._check(documents, kept, inventory)
        changes: list[AppliedView] = []
        if documents.fleet is not None:
            change = _change(state.fleet, documents.fleet)
            changes.append(AppliedView(kind="Fleet", name=documents.fleet.metadata.name, change=change))
        for model in documents.models:
            former = state.models.get(model.name)
            change = _change(former.model if former else None, model)
            changes.append(AppliedView(kind="Model", name=model.name, change=change))
        if not dry_run:
            self._commit(documents, inventory, [n for n in remove if n in state.models])
        return ApplyView(applied=tuple(changes))

    def _check(self, documents: Documents, kept: Sequence[Model], inventory: Inventory) -> None:
        problems = []
        if not inventory.devices:
            problems.append("Fleet: is missing and this machine has no GPU; declare virtual nodes and devices")
        elif documents.fleet is not None:
            replicas = list(self._state.replicas.values())
            there = Inventory(inventory.nodes, inventory.devices, tuple(r.placement for r in replicas))
            problems += [
                f"Fleet {documents.fleet.metadata.name}: spec.nodes: {text}; it is in use, so scale down first"
                for text in verify(there)
            ]
        if inventory.devices:
            for model in (*documents.models, *(kept if documents.fleet is not None else ())):
                refusal = planner.unplaceable(model, inventory)
                if refusal is not None:
                    field = _slice_field(refusal.refusals)
                    problems.append(
                        f"Model {model.name}: {field}: no device of the fleet could ever hold it: {refusal}"
                    )
        if problems:
            raise SpecError("\n".join(problems))

    def _commit(self, documents: Documents, inventory: Inventory, remove: Sequence[str]) -> None:
        now = time.time()
        with self._recording():
            if documents.fleet is not None:
                self._store.put_fleet(documents.fleet)
            for model in documents.models:
                self._store.put_model(model, now)
            for name in remove:
                self._store.delete_model(name)
        if documents.fleet is not None:
            self._state.fleet = documents.fleet
            self._state.inventory = inventory
        for model in documents.models:
            self._put(model, now)
        for name in remove:
            self._forget(name)
        self._loop.nudge()

    def _put(self, model: Model, now: float) -> None:
        entry = self._state.models.get(model.name)
        if entry is None:
            self._state.models[model.name] = ModelState(model, now, fresh_policy_state(model.name, _monotonic()))
            return
        if entry.model.revision != model.revision:
            entry.attempts = planner.Attempts()
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


def _monotonic() -> float:
    return asyncio.get_running_loop().time()


def _change(former: Model | Fleet | None, new: Model | Fleet) -> Any:
    return "created" if former is None else ("unchanged" if former == new else "configured")


_FIELDS = {
    "model": "spec.slice.deviceSelector.models",
    "label": "spec.slice.deviceSelector.matchLabels",
    "mechanism": "spec.slice.mechanism",
}


def _slice_field(refusals: Sequence[ClassRefusal]) -> str:
    # What is left is too large: for the device itself, or else for what its node has of CPU and memory.
    too_large = ("spec.resources.requests", "spec.slice.memory.request")
    fields = {_FIELDS.get(r.reason, too_large[r.missing_mib > 0]) for r in refusals}
    return fields.pop() if len(fields) == 1 else "spec.slice"
