"""The controller's state as the views of the admin API. Pure: nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence

from autoscaler.types import Recommendation, SignalReading
from packer.inventory import Device, Placement
from packer.topology import joined
from tangram.control import rollouts
from tangram.control.state import ControllerState, ModelState, natural
from tangram.control.store import StoredRevision
from tangram.control.views import (
    ConditionView,
    DecisionView,
    DeviceView,
    ExplainView,
    ModelUsageView,
    ModelView,
    PlacementView,
    ReplicaView,
    RevisionView,
    RolloutView,
    SignalView,
    TenantUsageView,
)
from tangram.core import convert
from tangram.core.decision import Decision
from tangram.core.replica import Phase, Replica
from tangram.core.rollout import Stage, canary_percent
from tangram.core.usage import TenantUsage


def model_view(state: ControllerState, entry: ModelState, monotonic: float) -> ModelView:
    """One row of `get models`."""
    model = entry.model
    scaling = model.spec.scaling
    p50, p99 = state.demand.latency_s(model.name, (0.5, 0.99))
    wanted = entry.recommendation
    return ModelView(
        name=model.name,
        project=model.spec.project,
        priority=model.spec.priority,
        runtime=model.spec.runtime.kind.value,
        ready=state.count(model.name, Phase.READY),
        starting=state.count(model.name, Phase.STARTING, Phase.CRASHED, Phase.UNREADY),
        draining=state.count(model.name, Phase.DRAINING, Phase.STOPPING),
        desired=entry.wanted or 0,
        advised=wanted.replicas if wanted and wanted.advisory else None,
        window=wanted.window if wanted else "",
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        fixed_replicas=scaling.replicas,
        target_qps=scaling.target_qps,
        qps=state.demand.qps(model.name, monotonic),
        capacity=None if wanted is None or wanted.capacity is None else round(wanted.capacity, 2),
        in_flight=state.demand.in_flight(model.name),
        queued=state.demand.queued(model.name),
        p50_ms=None if p50 is None else round(p50 * 1000, 2),
        p99_ms=None if p99 is None else round(p99 * 1000, 2),
        signal=wanted.signal if wanted else "",
        revision=model.revision,
        conditions=_conditions(state, entry),
        created_at=entry.created_at,
    )


def rollout_view(state: ControllerState, entry: ModelState, revisions: Sequence[StoredRevision]) -> RolloutView:
    """What `rollout status` shows."""
    history = tuple(
        RevisionView(
            number=r.number,
            revision=r.revision,
            current=r.revision == entry.model.revision,
            created_at=r.created_at,
            failed=r.failed,
        )
        for r in revisions
    )
    last, terms = entry.rollout, entry.model.spec.rollout
    if last is None:
        return RolloutView(model=entry.model.name, stage="None", revision=entry.model.revision, revisions=history)
    seen = rollouts.seen(state, entry, last)
    return RolloutView(
        model=entry.model.name,
        stage=last.stage.value,
        revision=last.revision,
        former=last.former,
        step=last.step + 1 if last.stage is Stage.CANARY else 0,
        steps=len(terms.canary),
        percent=canary_percent(last, terms),
        ready=seen.new_ready,
        wanted=seen.count,
        old=seen.old_live,
        requests=seen.requests,
        failures=seen.failures,
        began_at=last.began_at,
        message=last.message,
        revisions=history,
    )


def _conditions(state: ControllerState, entry: ModelState) -> tuple[ConditionView, ...]:
    name, latest = entry.model.name, entry.latest
    ready = state.count(name, Phase.READY)
    wanted = entry.wanted or 0
    current = sum(r.live and r.revision == entry.model.revision for r in state.of_model(name))
    refused = tuple(filter(None, (latest.shared, *latest.refused))) if latest else ()
    waiting = latest.waiting if latest else ""
    failing = waiting and entry.attempts.failed > 0
    troubled = [r for r in state.of_model(name) if r.phase in (Phase.CRASHED, Phase.UNREADY)]
    ejected = state.demand.ejections(name)
    trouble = [*(f"{r.name}: {r.message}" for r in troubled), *(f"{r}: ejected, {w}" for r, w in ejected.items())]
    return (
        ConditionView(
            type="Ready",
            status="True" if ready or not wanted else "False",
            reason="ScaledToZero" if not wanted else ("ReplicasReady" if ready else "NoReplicaReady"),
            message=f"{ready} of {wanted} ready",
        ),
        ConditionView(
            type="Placed",
            status="False" if refused else "True",
            reason="Shared" if latest and latest.shared else "NoFit" if refused else "AllPlaced",
            message="; ".join(refused),
        ),
        ConditionView(
            type="Progressing",
            status="False" if failing else "True",
            reason="ProgressDeadlineExceeded" if failing else "RoomIsBeingMade" if waiting else "StartsGoOn",
            message=waiting,
        ),
        ConditionView(
            type="Healthy",
            status="False" if trouble else "True",
            reason=troubled[0].phase.value if troubled else "ReplicasEjected" if ejected else "NoTrouble",
            message="; ".join(trouble),
        ),
        ConditionView(
            type="UpToDate",
            status="True" if current == len([r for r in state.of_model(name) if r.live]) else "False",
            reason="RolledOut" if current == len([r for r in state.of_model(name) if r.live]) else "Rolling",
            message=f"revision {entry.model.revision}",
        ),
    )


def replica_view(state: ControllerState, replica: Replica) -> ReplicaView:
    """One row of `get replicas`."""
    status = state.statuses.get(replica.name)
    request = replica.placement.request
    several = state.devices_of(replica) if replica.placement.more_devices else None
    return ReplicaView(
        name=replica.name,
        model=replica.model,
        revision=replica.revision,
        phase=replica.phase.value,
        node=replica.placement.node,
        device=replica.placement.device,
        devices=replica.placement.all_devices,
        links=joined(several) if several else "",
        memory_request=convert.guaranteed_mib(replica.placement, state.devices),
        memory_limit=convert.limit_mib(replica.placement, state.devices),
        compute=request.compute,
        loaned_compute=replica.loan,
        mechanism=request.mechanism,
        port=replica.port,
        pid=replica.pid,
        restarts=replica.restarts,
        in_flight=state.demand.replica_in_flight(replica.model, replica.name),
        cpu_percent=status.cpu_percent if status else None,
        memory=status.memory_mib if status else None,
        ejected=state.demand.ejections(replica.model).get(replica.name, ""),
        created_at=replica.created_at,
        started_at=replica.started_at,
        ready_at=replica.ready_at,
        message=replica.message,
    )


def replica_views(state: ControllerState, model: str | None = None) -> list[ReplicaView]:
    """Rows of `get replicas`, by name."""
    chosen = (r for r in state.replicas.values() if model is None or r.model == model)
    return [replica_view(state, r) for r in sorted(chosen, key=natural)]


def device_views(state: ControllerState) -> list[DeviceView]:
    """Rows of `get devices`, by id. What a replica of several devices uses counts in equal parts on each."""
    held: dict[str, list[Replica]] = {}
    for replica in sorted(state.replicas.values(), key=natural):
        for name in replica.placement.all_devices:
            held.setdefault(name, []).append(replica)
    views = []
    for device in sorted(state.inventory.devices, key=lambda d: d.id):
        there = held.get(device.id, [])
        used = [
            s.memory_mib / len(r.placement.all_devices)
            for r in there
            if (s := state.statuses.get(r.name)) is not None and s.memory_mib is not None
        ]
        views.append(
            device_view(
                device,
                [r.placement for r in there],
                used=round(sum(used), 1) if "virtual" in device.mechanisms else None,
                loaned=sum(r.loan for r in there),
            )
        )
    return views


def device_view(device: Device, held: Sequence[Placement], *, used: float | None = None, loaned: int = 0) -> DeviceView:
    """A device with those who lie there."""
    return DeviceView(
        id=device.id,
        node=device.node,
        model=device.model,
        memory_total=device.memory_mib,
        memory_reserve=device.reserve_mib,
        memory_requested=sum(p.request.takes_mib(device) for p in held),
        memory_used=used,
        compute_requested=sum(p.request.compute for p in held),
        compute_loaned=loaned,
        clients=len(held),
        max_clients=device.max_clients,
        mechanisms=tuple(sorted(device.mechanisms)),
        healthy=device.healthy,
        replicas=tuple(p.request.id for p in held),
        links=dict(device.links),
        distances={other: far.name for other, far in device.distances.items()},
    )


def signal_view(reading: SignalReading) -> SignalView:
    """What one signal said."""
    return SignalView(
        name=reading.name,
        value=None if reading.value is None else round(reading.value, 3),
        target=reading.target,
        replicas=reading.replicas,
        note=reading.note,
    )


def decision_view(decision: Decision) -> DecisionView:
    """A decision as it is recorded; its number is given by the store."""
    recommendation: Recommendation = decision.recommendation
    return DecisionView(
        id=0,
        at=decision.at,
        model=decision.model,
        previous=recommendation.previous,
        wanted=recommendation.replicas,
        desired=decision.desired if recommendation.advisory else None,
        granted=decision.granted,
        signal=recommendation.signal,
        signals=tuple(map(signal_view, recommendation.readings)),
        reasons=recommendation.reasons,
        actions=decision.actions,
        placements=tuple(
            PlacementView(
                replica=p.request.id,
                device=p.device,
                devices=p.all_devices if p.more_devices else (),
                score=round(p.score, 4),
                why=p.why,
                alternatives=tuple(f"{a.device}: {a.why}" for a in p.alternatives),
            )
            for p in decision.placements
        ),
        refused=decision.refused,
        shared=decision.shared,
        waiting=decision.waiting,
    )


def explain_view(
    state: ControllerState, entry: ModelState, decisions: Sequence[DecisionView], now: float, monotonic: float
) -> ExplainView:
    """Why this many, why there."""
    name = entry.model.name
    replicas = replica_views(state, name)
    return ExplainView(
        model=name,
        at=now,
        summary=_summary(state, entry, monotonic),
        qps=state.demand.qps(name, monotonic),
        latest=decision_view(entry.latest) if entry.latest else None,
        decisions=tuple(decisions),
        replicas=tuple(replicas),
    )


def _summary(state: ControllerState, entry: ModelState, monotonic: float) -> str:
    name, wanted = entry.model.name, entry.recommendation
    if wanted is None:
        return "no turn of the loop has looked at this model yet"
    qps = state.demand.qps(name, monotonic)
    ready = state.count(name, Phase.READY)
    starting = state.count(name, Phase.STARTING, Phase.CRASHED, Phase.UNREADY)
    seen = "no demand measured yet" if qps is None else f"{qps:.1f} requests/s"
    there = f"{ready} ready" + (f", {starting} on the way" if starting else "")
    count = f"{wanted.replicas} wanted, decided by {wanted.signal}"
    if wanted.advisory:
        count = f"would be {wanted.replicas}, decided by {wanted.signal}; advisory, so it stays at {entry.wanted or 0}"
    text = f"{seen}; {count}; {there}"
    if entry.latest and entry.latest.shared:
        text += f"; {entry.latest.shared}"
    if entry.latest and entry.latest.refused:
        text += "; no place for more: " + "; ".join(entry.latest.refused)
    if entry.latest and entry.latest.waiting:
        text += f"; {entry.latest.waiting}"
    return text


def tenant_usage(usage: TenantUsage) -> TenantUsageView:
    """What a tenant used, models by name."""
    models = tuple(
        ModelUsageView(
            model=name,
            requests=sum(used.requests.values()),
            errors=sum(count for code, count in used.requests.items() if code >= 500),
            seconds=used.seconds,
            codes={str(code): count for code, count in sorted(used.requests.items())},
        )
        for name, used in sorted(usage.models.items())
    )
    return TenantUsageView(
        requests=sum(m.requests for m in models),
        errors=sum(m.errors for m in models),
        seconds=sum(m.seconds for m in models),
        refused=dict(sorted(usage.refused.items())),
        models=models,
    )
