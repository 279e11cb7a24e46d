"""A Facade in memory: takes and changes specs as the controller does, and shows replicas that a test puts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tangram.control.facade import ModelMetrics, NotFound
from tangram.control.views import (
    AppliedView,
    ApplyView,
    ConditionView,
    DecisionView,
    DescribeView,
    DeviceView,
    EventView,
    ExplainView,
    KeyView,
    ModelView,
    NewKeyView,
    PlacementView,
    ReplicaView,
    RevisionView,
    RolloutView,
    ScaleRequest,
    SignalView,
    StatusView,
    TenantView,
    UndoRequest,
    WorkerView,
)
from tangram.spec import Model, SpecError, explain_validation, parse_documents

NOW = 1_700_000_000.0


def model_document(name: str = "digits", **scaling: object) -> dict[str, object]:
    """A Model as a client sends it."""
    return {
        "apiVersion": "tangram.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {
            "runtime": {"kind": "embedded", "model": f"{name}.py"},
            "slice": {"memory": {"request": "128Mi"}, "compute": 20},
            "scaling": {"minReplicas": 1, "maxReplicas": 4, "targetQPS": 20, **scaling},
        },
    }


def a_replica(name: str = "digits-7f3a1", model: str = "digits", **fields: object) -> ReplicaView:
    """A replica that serves."""
    values: dict[str, object] = {
        "name": name,
        "model": model,
        "revision": "0badcafe",
        "phase": "Ready",
        "node": "node-a",
        "device": "node-a/gpu-0",
        "memory_request": 128,
        "memory_limit": 256,
        "compute": 20,
        "mechanism": "virtual",
        "port": 40001,
        "pid": 4242,
        "restarts": 1,
        "in_flight": 2,
        "cpu_percent": 31.5,
        "memory": 61.3,
        "created_at": NOW - 300,
        "started_at": NOW - 299,
        "ready_at": NOW - 297,
    }
    values |= fields
    return ReplicaView.model_validate({"devices": (values["device"],), **values})


def a_device(id: str = "node-a/gpu-0", **fields: object) -> DeviceView:
    """A device with one small replica on it."""
    values: dict[str, object] = {
        "id": id,
        "node": "node-a",
        "model": "virtual",
        "memory_total": 1024,
        "memory_reserve": 24,
        "memory_requested": 128,
        "memory_used": 61.3,
        "compute_requested": 20,
        "clients": 1,
        "max_clients": 48,
        "mechanisms": ("virtual",),
        "replicas": ("digits-7f3a1",),
    }
    return DeviceView.model_validate(values | fields)


def a_decision(id: int = 7, model: str = "digits", **fields: object) -> DecisionView:
    """From two to three because of the request rate; one more was wanted and found no place."""
    values: dict[str, object] = {
        "id": id,
        "at": NOW - 120,
        "model": model,
        "previous": 2,
        "wanted": 4,
        "granted": 3,
        "signal": "qps",
        "signals": (
            SignalView(name="qps", value=71.25, target=20.0, replicas=4),
            SignalView(name="cpu", value=None, target=70.0, replicas=None, note="no replica could be measured"),
        ),
        "reasons": ("qps 71.2/s at 20/s a replica wants 4", "maxReplicas 4 allows it"),
        "actions": ("start digits-9b2c4 on node-a/gpu-1",),
        "placements": (
            PlacementView(
                replica="digits-9b2c4",
                device="node-a/gpu-1",
                score=0.82,
                why="least left over that no model could use",
                alternatives=("node-a/gpu-0: holds 1 replica of digits already",),
            ),
        ),
        "refused": ("virtual 1024 MiB: compute, 10% missing on 2 devices",),
    }
    return DecisionView.model_validate(values | fields)


@dataclass
class FakeFacade:
    """See the module."""

    log_folder: Path = Path("/nonexistent")
    specs_by_name: dict[str, Model] = field(default_factory=dict)
    replica_views: list[ReplicaView] = field(default_factory=list)
    keys_by_id: dict[str, KeyView] = field(default_factory=dict)
    device_views: list[DeviceView] = field(default_factory=list)
    decision_views: list[DecisionView] = field(default_factory=list)
    event_views: list[EventView] = field(default_factory=list)
    worker_urls: list[tuple[int, str]] = field(default_factory=list)
    adopting: bool = False
    fails: bool = False
    gateway: str = "http://127.0.0.1:8080"
    ready_at_once: bool = True

    def status(self) -> StatusView:
        return StatusView(
            version="0.1.0",
            term=3,
            adopting=self.adopting,
            gateway=self.gateway,
            workers=(WorkerView(index=0, pid=99, port=8080, admin_port=40000, connected=True, applied=(3, 17)),),
            models=len(self.specs_by_name),
            replicas=len(self.replica_views),
            started_at=NOW - 3600,
        )

    def models(self) -> Sequence[ModelView]:
        if self.fails:
            raise RuntimeError("a fault of ours")
        return [self.model(name) for name in sorted(self.specs_by_name)]

    def model(self, name: str) -> ModelView:
        spec = self._spec(name)
        scaling = spec.spec.scaling
        ready = sum(r.model == name and r.phase == "Ready" for r in self.replica_views)
        return ModelView(
            name=name,
            project=spec.spec.project,
            priority=spec.spec.priority,
            runtime=spec.spec.runtime.kind,
            ready=ready,
            starting=0,
            draining=0,
            desired=scaling.min_replicas if scaling.replicas is None else scaling.replicas,
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            fixed_replicas=scaling.replicas,
            target_qps=scaling.target_qps,
            qps=41.25,
            p99_ms=12.5,
            signal="qps",
            revision=spec.revision,
            conditions=(ConditionView(type="Ready", status="True" if ready else "False", reason="MinimumReplicas"),),
            created_at=NOW - 7200,
        )

    def specs(self) -> Sequence[Model]:
        return [self.specs_by_name[name] for name in sorted(self.specs_by_name)]

    def describe(self, name: str) -> DescribeView:
        return DescribeView(
            model=self.model(name),
            spec=self._spec(name),
            replicas=tuple(self.replicas(name)),
            events=tuple(self.events(name)),
            decisions=tuple(self.decisions(name)),
        )

    def explain(self, name: str) -> ExplainView:
        self._spec(name)
        decisions = tuple(self.decisions(name))
        return ExplainView(
            model=name,
            at=NOW,
            summary=f"{name} has 3 of 4 replicas it wants: nothing is left for the fourth.",
            qps=71.25,
            latest=decisions[0] if decisions else None,
            decisions=decisions,
            replicas=tuple(self.replicas(name)),
        )

    def replicas(self, model: str | None = None) -> Sequence[ReplicaView]:
        if model is not None:
            self._spec(model)
        return [r for r in self.replica_views if model in (None, r.model)]

    def devices(self) -> Sequence[DeviceView]:
        return self.device_views

    def decisions(self, model: str | None = None, limit: int = 50) -> Sequence[DecisionView]:
        return [d for d in self.decision_views if model in (None, d.model)][:limit]

    def events(self, model: str | None = None, limit: int = 50) -> Sequence[EventView]:
        return [e for e in self.event_views if model in (None, e.model)][:limit]

    def log_path(self, replica: str) -> Path:
        path = self.log_folder / f"{replica}.log"
        if not path.exists() and not any(r.name == replica for r in self.replica_views):
            raise NotFound(f"no replica {replica!r}")
        return path

    async def apply(self, documents: Sequence[dict[str, object]], *, dry_run: bool = False) -> ApplyView:
        parsed = parse_documents(documents)
        applied = []
        for model in parsed.models:
            known = self.specs_by_name.get(model.name)
            change = "created" if known is None else "unchanged" if known == model else "configured"
            applied.append(AppliedView(kind="Model", name=model.name, change=change))
            if not dry_run:
                self.specs_by_name[model.name] = model
                if known is None and self.ready_at_once:
                    self.replica_views.append(a_replica(f"{model.name}-00001", model.name, revision=model.revision))
        return ApplyView(applied=tuple(applied))

    async def scale(self, name: str, request: ScaleRequest) -> ModelView:
        spec = self._spec(name)
        changes = request.model_dump(exclude_none=True, by_alias=True)
        if changes.get("replicas") == "auto":
            changes["replicas"] = None
        document = spec.model_dump(mode="json", by_alias=True)
        document["spec"]["scaling"] |= changes
        try:
            self.specs_by_name[name] = Model.model_validate(document)
        except ValidationError as error:
            raise SpecError("\n".join(explain_validation(error))) from None
        return self.model(name)

    def rollout(self, name: str) -> RolloutView:
        model = self.model(name)
        now = RevisionView(number=2, revision=model.revision, current=True, created_at=NOW)
        before = RevisionView(number=1, revision="0badcafe", current=False, created_at=NOW - 9)
        return RolloutView(
            model=name, stage="Complete", revision=model.revision, former="0badcafe", revisions=(now, before)
        )

    async def undo(self, name: str, request: UndoRequest) -> RolloutView:
        if request.to_revision not in (None, 1):
            self.model(name)
            raise SpecError(f"toRevision: model {name!r} has no other revision {request.to_revision} to go back to")
        return self.rollout(name)

    def tenants(self) -> Sequence[TenantView]:
        return [TenantView(name="acme", priority=0, weight=1, keys=len(self.keys_by_id))]

    async def delete_tenant(self, name: str) -> None:
        self._acme(name)

    def keys(self) -> Sequence[KeyView]:
        return list(self.keys_by_id.values())

    async def create_key(self, tenant: str) -> NewKeyView:
        self._acme(tenant)
        id = f"{len(self.keys_by_id):08x}"
        self.keys_by_id[id] = KeyView(id=id, tenant=tenant, created_at=NOW)
        return NewKeyView(id=id, tenant=tenant, key=f"tgm_{id}_secret", created_at=NOW)

    async def revoke_key(self, id: str) -> None:
        if id not in self.keys_by_id:
            raise NotFound(f"no key {id!r}")
        del self.keys_by_id[id]

    def _acme(self, name: str) -> None:
        if name != "acme":
            raise NotFound(f"no tenant {name!r}; there are: acme")

    async def delete(self, name: str) -> None:
        self._spec(name)
        del self.specs_by_name[name]
        self.replica_views = [r for r in self.replica_views if r.model != name]

    def worker_metrics_urls(self) -> Sequence[tuple[int, str]]:
        return self.worker_urls

    def controller_metrics(self) -> Sequence[ModelMetrics]:
        return [ModelMetrics(name, 3, 2, 1, (("qps", 3), ("cpu", 2))) for name in sorted(self.specs_by_name)]

    def _spec(self, name: str) -> Model:
        if name not in self.specs_by_name:
            raise NotFound(f"no model {name!r}; there is {', '.join(sorted(self.specs_by_name)) or 'none'}")
        return self.specs_by_name[name]
