"""The only place where the hall's nouns become the libraries' and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from autoscaler.defaults import RulesSpec, behavior
from autoscaler.quota import Claim
from autoscaler.schedule import bounds
from autoscaler.types import (
    ExternalTarget,
    MetricName,
    MetricTarget,
    Objective,
    RatePolicy,
    Recommendation,
    ScalingPolicy,
    Schedule,
)
from gateway import wire
from gateway.counts import COLUMNS
from gateway.wire import EndpointEntry, ModelEntry
from packer.inventory import Device, Distance, Inventory, Node, Placement, SliceRequest
from packer.mix import Mix, Shape, shape_of
from tangram.core.keys import Key
from tangram.core.replica import Phase, Replica
from tangram.spec import Fleet, MetricType, Model, RequestLimits, RuntimeKind, ScalingMode, ScalingRules, Tenant

#: Label of a virtual device: thousandths of a CPU core that stand for its whole compute.
CORES_LABEL: Final = "tangram.dev/cores"
#: Metrics that are measured here.
_METRICS: Final[Mapping[MetricType, MetricName]] = {
    MetricType.CPU: "cpu",
    MetricType.MEMORY: "memory",
    MetricType.DEVICE_MEMORY: "deviceMemory",
    MetricType.CONCURRENCY: "concurrency",
}


def inventory(fleet: Fleet | None, discovered: Sequence[Device] = ()) -> Inventory:
    """What there is: the declared virtual devices and those found on this machine, nothing placed."""
    nodes: list[Node] = []
    devices: list[Device] = []
    for node in fleet.spec.nodes if fleet else ():
        nodes.append(Node(node.name, node.cpu, node.memory, dict(node.labels)))
        devices += (
            Device(
                id=f"{node.name}/{d.name}",
                node=node.name,
                model=d.model,
                memory_mib=d.memory,
                reserve_mib=d.reserve,
                max_clients=d.max_clients,
                mechanisms=frozenset({"virtual"}),
                labels={**d.labels, CORES_LABEL: str(d.cores)},
                healthy=d.healthy,
                links={f"{node.name}/{other}": count for other, count in node.links_of(d.name).items()},
                distances={
                    f"{node.name}/{other}": Distance[far.value] for other, far in node.distances_of(d.name).items()
                },
            )
            for d in node.devices
        )
    known = {n.name for n in nodes}
    nodes += (Node(name) for name in dict.fromkeys(d.node for d in discovered) if name not in known)
    return Inventory(tuple(nodes), (*devices, *discovered))


def slice_request(model: Model, instance: str, avoid: frozenset[str] = frozenset()) -> SliceRequest:
    """What one Instance of the model asks of the packer."""
    wanted = model.spec.slice
    return SliceRequest(
        id=instance,
        group=model.name,
        memory_mib=wanted.memory.request,
        memory_limit_mib=wanted.memory.limit,
        compute=wanted.compute,
        mechanism=wanted.mechanism.value,
        cpu_milli=model.spec.resources.requests.cpu,
        host_memory_mib=model.spec.resources.requests.memory,
        device_models=frozenset(wanted.device_selector.models),
        labels=dict(wanted.device_selector.match_labels),
        avoid=avoid,
        devices=wanted.devices,
        whole=wanted.whole,
    )


def expected_mix(wanted: Mapping[str, tuple[Model, int]]) -> Mix:
    """What the models may ask for next: a model's slice weighs as many replicas as it wants, if it may still grow.

    Weights are powers of two, so that a replica more or less does not change the mix: a large fleet's prices are worked
    out anew with each mix.
    """
    weights: dict[Shape, float] = {}
    for name, (model, count) in wanted.items():
        room = model.spec.scaling.max_replicas - count
        if model.spec.scaling.replicas is None and room > 0:
            shape = shape_of(slice_request(model, name))
            weights[shape] = weights.get(shape, 0.0) + min(room, max(1, count))
    return Mix.of({shape: 2.0 ** round(math.log2(weight)) for shape, weight in weights.items()})


def scaling_policy(model: Model, *, advise: bool = False, most_boost: float = math.inf) -> ScalingPolicy:
    """What the operator wants of the model's replica count, defaults filled in.

    With `advise` it is advisory whatever the model says. A count set by hand is acted on all the same. `most_boost` is
    how many times its slice's compute a replica could have on its device, whatever the model allows.
    """
    scaling, wanted = model.spec.scaling, model.spec.slice
    growth = wanted.effective_compute_limit / wanted.compute if wanted.compute else 1.0
    return ScalingPolicy(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_qps=scaling.target_qps,
        mode=scaling.mode.value,
        metrics=tuple(MetricTarget(_METRICS[m.type], m.target) for m in scaling.metrics if m.type in _METRICS),
        external=tuple(
            ExternalTarget(m.name, m.target, m.target_type.value) for m in scaling.metrics if m.name is not None
        ),
        behavior=behavior(_rules(scaling.behavior.scale_up), _rules(scaling.behavior.scale_down)),
        idle_s=scaling.idle_seconds,
        concurrency_limit=model.spec.traffic.concurrency_per_replica,
        objective=None
        if scaling.objective is None
        else Objective(scaling.objective.latency_milliseconds / 1000, scaling.objective.percentile),
        max_boost=max(1.0, min(growth, most_boost)),
        fixed_replicas=scaling.replicas,
        schedules=_schedules(model),
        advisory=(scaling.advisory or advise) and scaling.replicas is None,
    )


def claim(
    model: Model, advice: Recommendation, wanted: int, least: int, rate: float, queued: float, suffered: float
) -> Claim:
    """What the model asks of a fleet that cannot hold all.

    `rate` is what arrives now, in requests per second; `queued` are the requests that wait.

    A count that is not the autoscaler's (set by hand, or kept in advisory mode) is claimed as the least one.
    """
    scaling = model.spec.scaling
    rate = max(rate, advice.expected or 0.0)
    capacity = advice.capacity
    if capacity is None or (scaling.mode is ScalingMode.HONOUR and scaling.target_qps is not None):
        known = [c for c in (capacity, scaling.target_qps) if c is not None]
        capacity = min(known, default=rate / wanted if rate and wanted else 1.0)
    return Claim(
        name=model.name,
        wanted=wanted,
        rate=rate,
        capacity=capacity,
        slots=float(model.spec.traffic.concurrency_per_replica or 1),
        priority=model.spec.priority,
        floor=wanted if scaling.replicas is not None or advice.advisory else least,
        suffered=suffered,
        queued=queued,
    )


def replica_bounds(model: Model, at: datetime) -> tuple[int, int]:
    """Least and most replicas at a time (with a zone), by the windows that are open then."""
    scaling = model.spec.scaling
    if scaling.replicas is not None:
        return scaling.replicas, scaling.replicas
    if not scaling.schedules:
        return scaling.min_replicas, scaling.max_replicas
    least, most, _ = bounds(_schedules(model), scaling.min_replicas, scaling.max_replicas, at, 0.0)
    return least, most


def _schedules(model: Model) -> tuple[Schedule, ...]:
    return tuple(
        Schedule(s.start, s.end, s.min_replicas, s.max_replicas, ZoneInfo(s.time_zone))
        for s in model.spec.scaling.schedules
    )


def _rules(rules: ScalingRules) -> RulesSpec:
    policies = rules.policies
    return RulesSpec(
        stabilization_s=rules.stabilization_window_seconds,
        select=rules.select_policy.value,
        policies=None
        if policies is None
        else tuple(RatePolicy(p.type.value, p.value, float(p.period_seconds)) for p in policies),
        tolerance=rules.tolerance,
    )


def model_entry(
    model: Model,
    replicas: Sequence[Replica],
    *,
    expected_ready_s: float | None,
    unavailable: str | None,
    host: str = "127.0.0.1",
    canary_percent: int | None = None,
    max_replicas: int | None = None,
    slot: int = 0,
) -> ModelEntry:
    """All that gateway workers need to know of the model: its settings and its usable replicas.

    `max_replicas` is the most that it may have at present, where that is not what its spec says.
    """
    spec = model.spec
    usual = spec.scaling.max_replicas if spec.scaling.replicas is None else spec.scaling.replicas
    return ModelEntry(
        name=model.name,
        aliases=spec.traffic.aliases,
        rename_aliases=spec.runtime.kind is RuntimeKind.EMBEDDED,
        protocol=spec.runtime.protocol.value,
        endpoints=tuple(
            EndpointEntry(
                id=r.name,
                host=host,
                port=r.port,
                concurrency=spec.traffic.concurrency_per_replica,
                slot=r.slot,
                draining=r.phase is Phase.DRAINING,
                canary=canary_percent is not None and r.revision == model.revision,
            )
            for r in replicas
            if r.phase in (Phase.READY, Phase.DRAINING)
        ),
        timeout_s=spec.traffic.timeout_seconds,
        queue_max_requests=spec.traffic.queue.max_requests,
        queue_max_bytes=spec.traffic.queue.max_memory * 1024 * 1024,
        queue_max_s=spec.traffic.queue.max_seconds,
        slot=slot,
        retry_attempts=spec.traffic.retry.attempts,
        retry_all_methods=spec.traffic.retry.all_methods,
        max_replicas=usual if max_replicas is None else max_replicas,
        starting=sum(r.phase is Phase.STARTING for r in replicas),
        expected_ready_s=expected_ready_s,
        unavailable=unavailable,
        hedge=_hedge(model),
        health=_health(model),
        canary_percent=canary_percent,
        split=tuple(wire.SplitTarget(model=t.model, percent=t.percent) for t in spec.traffic.split),
        sticky_header=spec.traffic.sticky.header if spec.traffic.sticky else "",
        mirror=spec.traffic.mirror.model if spec.traffic.mirror else "",
        mirror_percent=spec.traffic.mirror.percent if spec.traffic.mirror else 100.0,
    )


def settings(
    tenants: Sequence[Tenant], keys: Sequence[Key], fleet: Fleet | None, *, require_key: bool
) -> wire.Settings:
    """What holds for all models."""
    # Slots of tenants' limits count down from the end of the shared memory, those of replicas up from its beginning.
    slots = iter(range(COLUMNS - 1, -1, -1))
    entries = []
    for tenant in sorted(tenants, key=lambda t: t.name):
        spec = tenant.spec
        limits = [("", spec.limits), *sorted(spec.model_limits.items())]
        own = [wire.TenantKey(id=k.id, sha256=k.sha256) for k in spec.keys]
        entries.append(
            wire.TenantEntry(
                name=tenant.name,
                keys=(*own, *(wire.TenantKey(id=k.id, sha256=k.sha256) for k in keys if k.tenant == tenant.name)),
                models=spec.models,
                priority=spec.priority,
                weight=spec.weight,
                limits=tuple(_limit(model, limit, next(slots)) for model, limit in limits),
            )
        )
    queue = fleet.spec.gateway.queue if fleet is not None else None
    bounds = (
        {}
        if queue is None
        else {"queue_max_requests": queue.max_requests, "queue_max_bytes": queue.max_memory * 1024 * 1024}
    )
    return wire.Settings(tenants=tuple(entries), require_key=require_key, **bounds)


def _limit(model: str, limit: RequestLimits, slot: int) -> wire.TenantLimit:
    return wire.TenantLimit(
        model=model,
        requests_per_s=limit.requests_per_second or 0.0,
        burst=limit.burst or 0,
        concurrency=limit.concurrency or 0,
        slot=slot,
    )


def _hedge(model: Model) -> wire.Hedge | None:
    hedge = model.spec.traffic.hedge
    if hedge is None:
        return None
    return wire.Hedge(after_s=hedge.after_seconds, percentile=hedge.after_percentile, max_percent=hedge.max_percent)


def _health(model: Model) -> wire.Health:
    health, readiness = model.spec.traffic.health, model.spec.runtime.readiness
    return wire.Health(
        consecutive_errors=health.ejection.consecutive_errors,
        slow_factor=health.ejection.slow_factor,
        ejection_s=health.ejection.seconds,
        max_ejection_s=health.ejection.max_seconds,
        max_ejected_percent=health.ejection.max_percent,
        slow_start_s=health.slow_start_seconds,
        probe_path=readiness.path,
        probe_timeout_s=readiness.timeout_seconds,
    )


def cores(devices: Sequence[Device], compute: int) -> float | None:
    """Host cores that `compute` percent of each device are together; None (best effort) for 0 or where a device
    declares none.
    """
    declared = [d.labels.get(CORES_LABEL) for d in devices]
    milli = [int(text) for text in declared if text is not None]
    return compute / 100 * sum(milli) / 1000 if compute and len(milli) == len(declared) else None


def devices_of(placement: Placement, devices: Mapping[str, Device]) -> tuple[Device, ...]:
    """The placement's devices that are there, in its order; `devices` by id."""
    return tuple(devices[d] for d in placement.all_devices if d in devices)


def guaranteed_mib(placement: Placement, devices: Mapping[str, Device]) -> int:
    """MiB that the replica is guaranteed, on all its devices together."""
    request = placement.request
    return sum(request.takes_mib(devices[d]) if d in devices else request.memory_mib for d in placement.all_devices)


def limit_mib(placement: Placement, devices: Mapping[str, Device]) -> int:
    """MiB that the replica may grow to, on all its devices together."""
    request = placement.request
    return guaranteed_mib(placement, devices) + len(placement.all_devices) * (request.limit_mib - request.memory_mib)


def in_words(placement: Placement) -> str:
    """The devices that it lies on: `node-a/gpu-0`, or `node-a/gpu-0 and node-a/gpu-1`."""
    *most, last = placement.all_devices
    return f"{', '.join(most)} and {last}" if most else last
