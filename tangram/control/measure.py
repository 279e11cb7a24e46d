"""What the autoscaler is shown of a model: its replicas as supply, and a sample of what was measured."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from autoscaler.quota import Claim
from autoscaler.types import External, Sample, Supply
from tangram.control.state import ControllerState, ModelState
from tangram.core import convert
from tangram.core.replica import Phase, Replica
from tangram.spec import Mechanism, Model

#: Of Prometheus' period: for so long an answer is good.
STALE_PERIODS: Final = 3.0


def supply_of(state: ControllerState, entry: ModelState) -> Supply:
    """Replicas of the model as the autoscaler counts them."""
    name = entry.model.name
    ready = state.count(name, Phase.READY)
    starting = state.count(name, Phase.STARTING, Phase.CRASHED, Phase.UNREADY)
    revisions = {r.revision for r in state.of_model(name) if r.live}
    if revisions - {entry.model.revision} and entry.wanted is not None:
        # The one more that exists while a revision is rolled in is a replacement and not a wish for more.
        ready = min(ready, entry.wanted)
        starting = min(starting, entry.wanted - ready)
    return Supply(
        ready=ready,
        starting=starting,
        draining=state.count(name, Phase.DRAINING),
        expected_ready_s=entry.expected_start_s,
        boost=_boost(state, name),
    )


def _boost(state: ControllerState, model: str) -> float:
    """How many times their slice's compute the ready replicas have, on average."""
    there = [r for r in state.replicas.of_model(model) if r.phase is Phase.READY]
    guaranteed = sum(r.placement.request.compute for r in there)
    return 1.0 + sum(r.loan for r in there) / guaranteed if guaranteed else 1.0


def most_boost(state: ControllerState, model: Model) -> float:
    """How many times its slice's compute each ready replica could have where it lies, on average; 1 for slices that do
    not grow.

    Of what a device has not guaranteed each of its slices that may grow is reckoned an equal share.
    """
    if model.spec.slice.effective_compute_limit <= model.spec.slice.compute:
        return 1.0
    there = [r for r in state.replicas.of_model(model.name) if r.phase is Phase.READY]
    guaranteed, loanable = 0, 0.0
    for replica in there:
        beside = [r for r in state.replicas.values() if replica.placement.device in r.placement.all_devices]
        free = max(0, 100 - sum(r.placement.request.compute for r in beside))
        sharing = sum(_may_grow(state, r) for r in beside)
        guaranteed += replica.placement.request.compute
        loanable += free / max(1, sharing)
    return 1.0 + loanable / guaranteed if guaranteed else 1.0


def _may_grow(state: ControllerState, replica: Replica) -> bool:
    entry = state.models.get(replica.model)
    return entry is not None and entry.model.spec.slice.effective_compute_limit > entry.model.spec.slice.compute


def claim_of(state: ControllerState, entry: ModelState, now: float, monotonic: float) -> Claim | None:
    """What the model asks of a fleet that cannot hold all; None before anything is recommended."""
    if entry.recommendation is None or entry.wanted is None:
        return None
    least, _ = convert.replica_bounds(entry.model, datetime.fromtimestamp(now, UTC))
    rate = state.demand.qps(entry.model.name, monotonic) or 0.0
    queued = float(state.demand.queued(entry.model.name))
    return convert.claim(entry.model, entry.recommendation, entry.wanted, least, rate, queued, entry.suffered)


def measure_model(state: ControllerState, entry: ModelState, monotonic: float) -> Sample:
    """What was measured of the model since it was last asked: the gateway's figures and those of its ready replicas."""
    measured = state.demand.take(entry.model.name, monotonic)
    ready = [
        (r, status)
        for r in state.of_model(entry.model.name)
        if r.phase is Phase.READY and (status := state.statuses.get(r.name)) is not None
    ]
    cpu = [_share(s.cpu_percent, _cores(state, entry.model, r)) for r, s in ready]
    host = entry.model.spec.resources.requests.memory
    on_device = entry.model.spec.slice.mechanism is Mechanism.VIRTUAL
    memory = [_share(s.memory_mib, host) for _, s in ready]
    device_memory = [
        _share(s.memory_mib, convert.guaranteed_mib(r.placement, state.devices)) for r, s in ready if on_device
    ]
    return Sample(
        dt=measured.dt,
        arrivals=measured.arrivals,
        completions=measured.completions,
        in_flight=measured.in_flight,
        queued=measured.queued,
        queued_now=measured.queued_now,
        cpu=tuple(c for c in cpu if c is not None),
        memory=tuple(m * 100 for m in memory if m is not None),
        device_memory=tuple(m * 100 for m in device_memory if m is not None),
        wake=entry.woken,
        external=external(state, entry.model, monotonic),
    )


def external(state: ControllerState, model: Model, monotonic: float) -> tuple[External, ...]:
    """What Prometheus says of the model's metrics; what is older than three periods is missing."""
    terms = state.fleet.spec.prometheus if state.fleet is not None else None
    found = []
    for metric in model.spec.scaling.metrics:
        if metric.query is None or metric.name is None:
            continue
        answer = state.answers.get(metric.query)
        if terms is None:
            found.append(External(metric.name, None, "the fleet declares no spec.prometheus.url"))
        elif answer is None:
            found.append(External(metric.name, None, "Prometheus has not been asked yet"))
        elif answer.value is None or monotonic - answer.at > STALE_PERIODS * terms.period_seconds:
            old = "" if answer.value is None else f" for {monotonic - answer.at:.0f} s"
            found.append(External(metric.name, None, f"Prometheus gives no answer{old}: {answer.error or 'too slow'}"))
        else:
            found.append(External(metric.name, answer.value))
    return tuple(found)


def _cores(state: ControllerState, model: Model, replica: Replica) -> float:
    devices = state.devices_of(replica)
    compute = replica.placement.request.compute + replica.loan
    bounded = convert.cores(devices, compute) if devices is not None else None
    return model.spec.resources.requests.cpu / 1000 if bounded is None else bounded


def _share(value: float | None, of: float) -> float | None:
    return None if value is None or of <= 0 else value / of
