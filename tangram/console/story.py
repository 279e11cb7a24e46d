"""`tangram explain NAME`: why this many replicas and why there, as a story a person reads from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable

from tangram.console import units
from tangram.control.views import DecisionView, ExplainView, PlacementView, ReplicaView, SignalView

#: What a signal's value and target are counted in.
_UNITS = {
    "qps": "/s",
    "concurrency": " in flight and queued",
    "queue": " queued",
    "cpu": "%",
    "memory": "%",
    "deviceMemory": "%",
}
#: What decided where no measured signal did.
_RULES = {
    "min": "the least it may have (minReplicas)",
    "max": "the most it may have (maxReplicas)",
    "fixed": "the count set by hand",
    "idle": "nobody asked for it",
    "timer": "requests come at regular times, and the next is near",
    "wake": "a request waits and no replica is there",
    "hold": "no data: what is there stays",
    "stabilization": "the stabilization window: no quick changes",
    "behavior": "the behavior policies bound the pace",
    "tolerance": "too small a difference to act on",
    "schedule": "the bounds of a window of time (schedules)",
}


def story(view: ExplainView) -> str:
    """The whole text."""
    lines = [f"{view.model}: {view.summary}", ""]
    latest = view.latest
    if latest is None:
        return "\n".join([*lines, "No turn of the loop has looked at it yet."])
    lines += ["Why this many"]
    seen = "no full window was measured yet" if view.qps is None else f"{units.number(view.qps)} requests a second"
    lines.append(f"  Demand: {seen}.")
    lines += _signals(latest)
    lines.append(f"  Decided by {_deciding(latest.signal)}: {_counts(latest)}.")
    lines += [f"    {reason}" for reason in latest.reasons]
    lines += _places(view)
    lines += _rejected(latest)
    lines += ["", "What was done lately"]
    lines += [line for decision in view.decisions for line in _done(decision, view.at)] or ["  nothing"]
    return "\n".join(lines)


def _deciding(signal: str) -> str:
    return f"{signal}, {_RULES[signal]}" if signal in _RULES else signal


def _counts(decision: DecisionView) -> str:
    if decision.desired is not None:
        would = f"it would be {units.count(decision.wanted, 'replica')}, {decision.previous} there at the time"
        return f"{would}; advisory, so {decision.desired} {'is' if decision.desired == 1 else 'are'} kept"
    text = f"{units.count(decision.wanted, 'replica')} wanted, {decision.previous} there at the time"
    return text if decision.granted >= decision.wanted else f"{text}, room for {decision.granted}"


def _signals(decision: DecisionView) -> Iterable[str]:
    if not decision.signals:
        return
    yield "  Signals, each with the replicas it alone would have:"
    for signal in decision.signals:
        yield f"    {'*' if signal.name == decision.signal else ' '} {_signal(signal)}"


def _signal(signal: SignalView) -> str:
    unit = _UNITS.get(signal.name, "")
    note = f" ({signal.note})" if signal.note else ""
    if signal.value is None or signal.replicas is None:
        return f"{signal.name}: missing{note}"
    measured, target = units.number(signal.value), units.number(signal.target)
    wants = units.count(signal.replicas, "replica")
    return f"{signal.name}: {measured}{unit}, {target}{unit} a replica: {wants}{note}"


def _places(view: ExplainView) -> Iterable[str]:
    known = {p.replica: p for d in reversed(view.decisions) for p in d.placements}
    known |= {p.replica: p for p in view.latest.placements} if view.latest else {}
    yield ""
    yield "Why there"
    if not view.replicas:
        yield "  It has no replicas."
    for replica in view.replicas:
        message = f": {replica.message}" if replica.message else ""
        yield f"  {replica.name} ({replica.phase}) holds {_held(replica)}{message}"
        if replica.name in known:
            yield from _placement(known[replica.name])
        else:
            yield "    placed longer ago than decisions are shown here"


def _held(replica: ReplicaView) -> str:
    if len(replica.devices) > 1:
        links = f": {replica.links}" if replica.links else ""
        return f"{', '.join(replica.devices)} whole ({units.memory(replica.memory_request)}){links}"
    slice_ = units.memory(replica.memory_request) + (f", {replica.compute}%" if replica.compute else "")
    return f"{slice_} of {replica.device}"


def _placement(placement: PlacementView) -> Iterable[str]:
    yield f"    {placement.why or 'the only one that fits'}"
    if placement.alternatives:
        yield "    weighed and not taken:"
        yield from (f"      {text}" for text in placement.alternatives)


def _rejected(decision: DecisionView) -> Iterable[str]:
    if decision.shared:
        yield ""
        yield "How a full fleet was shared"
        yield f"  {decision.shared}"
    if decision.refused:
        missing = (decision.wanted if decision.desired is None else decision.desired) - decision.granted
        yield ""
        yield f"What found no place ({units.count(missing, 'replica')})"
        yield from (f"  {text}" for text in decision.refused)
    if decision.waiting:
        yield ""
        yield "Why nothing is started at present"
        yield f"  {decision.waiting}"


def _lacking(decision: DecisionView) -> str:
    if decision.desired is not None:
        return f", advised {decision.wanted}"
    return f" of {decision.wanted} wanted" if decision.granted != decision.wanted else ""


def _done(decision: DecisionView, now: float) -> Iterable[str]:
    yield (
        f"  {units.age(decision.at, now)} ago: {decision.previous} to {decision.granted}"
        + _lacking(decision)
        + f", by {decision.signal}"
    )
    yield from (f"    {text}" for text in decision.actions)
    yield from (f"    no place: {text}" for text in decision.refused)
    if decision.shared:
        yield f"    {decision.shared}"
    if decision.waiting:
        yield f"    {decision.waiting}"
