"""Plain tables as kubectl prints them, one set of columns per noun.

A column is a title and a function from a view to text; wide columns show with `-o wide` only. The columns shown by
default fit 80 characters for names of the usual length. Free text comes last and is cut at the terminal's edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

from tangram.console import units
from tangram.control.views import DecisionView, DeviceView, EventView, ModelView, ReplicaView, TenantView

_GAP: Final = "  "
#: Characters of free text that are shown even where the terminal is too narrow for them.
_READABLE: Final = 32
V = TypeVar("V", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Column(Generic[V]):
    title: str
    text: Callable[[V, float], str]
    """Of a view, at a time (Unix seconds)."""
    wide: bool = False
    free: bool = False
    """Free text: shown last, where there is any, and cut at the edge."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[V]):
    """A noun that `get` shows."""

    plural: str
    singular: str
    short: tuple[str, ...]
    view: type[V]
    name: Callable[[V], str]
    columns: Sequence[Column[V]]


def status_of(model: ModelView) -> str:
    """One word for a model: the reason of the first condition that does not hold, else Ready."""
    for condition in sorted(model.conditions, key=lambda c: c.type == "Ready"):
        if condition.status == "False":
            return condition.reason or f"Not{condition.type}"
    return next((c.reason for c in model.conditions if c.type == "Ready" and c.reason == "ScaledToZero"), "Ready")


def _desired(model: ModelView) -> str:
    if model.advised is not None and model.advised != model.desired:
        return f"{model.desired} (would be {model.advised})"
    return f"{model.desired}!" if model.fixed_replicas is not None else str(model.desired)


def _compute(replica: ReplicaView) -> str:
    if not replica.compute:
        return units.NONE
    loan = f"+{units.percent(replica.loaned_compute)}" if replica.loaned_compute else ""
    return units.compute(replica.compute, len(replica.devices)) + loan


def _memory_of(replica: ReplicaView) -> str:
    return f"{units.memory(replica.memory)}/{units.memory(replica.memory_request)}"


def _message(replica: ReplicaView) -> str:
    ejected = f"ejected by the gateway: {replica.ejected}" if replica.ejected else ""
    return "; ".join(filter(None, [ejected, replica.message]))


def _change(decision: DecisionView) -> str:
    change = f"{decision.previous}->{decision.granted}"
    if decision.desired is not None:
        return f"{change}, advised {decision.wanted}"
    return change if decision.granted == decision.wanted else f"{change} of {decision.wanted}"


def _what(decision: DecisionView) -> str:
    hindered = [decision.shared, *(f"no place: {text}" for text in decision.refused), decision.waiting]
    return "; ".join(filter(None, [*decision.actions, *hindered])) or "; ".join(decision.reasons)


MODELS: Final[Kind[ModelView]] = Kind(
    "models",
    "model",
    ("m",),
    ModelView,
    lambda m: m.name,
    (
        Column("NAME", lambda m, now: m.name),
        Column("READY", lambda m, now: str(m.ready)),
        Column("DESIRED", lambda m, now: _desired(m)),
        Column("RANGE", lambda m, now: f"{m.min_replicas}-{m.max_replicas}"),
        Column("QPS", lambda m, now: units.number(m.qps)),
        Column("TARGET", lambda m, now: units.number(m.target_qps)),
        Column("CAPACITY", lambda m, now: units.number(m.capacity), wide=True),
        Column("P99", lambda m, now: units.milliseconds(m.p99_ms)),
        Column("P50", lambda m, now: units.milliseconds(m.p50_ms), wide=True),
        Column("INFLIGHT", lambda m, now: str(m.in_flight), wide=True),
        Column("QUEUED", lambda m, now: str(m.queued), wide=True),
        Column("STARTING", lambda m, now: str(m.starting), wide=True),
        Column("DRAINING", lambda m, now: str(m.draining), wide=True),
        Column("SIGNAL", lambda m, now: m.signal or units.NONE, wide=True),
        Column("STATUS", lambda m, now: status_of(m)),
        Column("RUNTIME", lambda m, now: m.runtime, wide=True),
        Column("PROJECT", lambda m, now: m.project, wide=True),
        Column("PRIORITY", lambda m, now: str(m.priority), wide=True),
        Column("REVISION", lambda m, now: m.revision, wide=True),
        Column("AGE", lambda m, now: units.age(m.created_at, now)),
    ),
)
REPLICAS: Final[Kind[ReplicaView]] = Kind(
    "replicas",
    "replica",
    ("r",),
    ReplicaView,
    lambda r: r.name,
    (
        Column("NAME", lambda r, now: r.name),
        Column("STATUS", lambda r, now: r.phase),
        Column("RESTARTS", lambda r, now: str(r.restarts)),
        Column("DEVICE", lambda r, now: units.devices(r.devices)),
        Column("MEMORY", lambda r, now: _memory_of(r)),
        Column("COMPUTE", lambda r, now: _compute(r)),
        Column("LIMIT", lambda r, now: units.memory(r.memory_limit), wide=True),
        Column("CPU", lambda r, now: units.percent(r.cpu_percent), wide=True),
        Column("INFLIGHT", lambda r, now: str(r.in_flight), wide=True),
        Column("MECHANISM", lambda r, now: r.mechanism, wide=True),
        Column("DEVICES", lambda r, now: ",".join(r.devices), wide=True),
        Column("PORT", lambda r, now: str(r.port), wide=True),
        Column("PID", lambda r, now: units.NONE if r.pid is None else str(r.pid), wide=True),
        Column("MODEL", lambda r, now: r.model, wide=True),
        Column("REVISION", lambda r, now: r.revision, wide=True),
        Column("AGE", lambda r, now: units.age(r.created_at, now)),
        Column("MESSAGE", lambda r, now: _message(r), free=True),
    ),
)
DEVICES: Final[Kind[DeviceView]] = Kind(
    "devices",
    "device",
    ("d",),
    DeviceView,
    lambda d: d.id,
    (
        Column("NAME", lambda d, now: d.id),
        Column("MODEL", lambda d, now: d.model),
        Column("MEMORY", lambda d, now: units.memory(d.memory_total - d.memory_reserve)),
        Column("GIVEN", lambda d, now: units.memory(d.memory_requested)),
        Column("USED", lambda d, now: units.memory(d.memory_used)),
        Column(
            "COMPUTE", lambda d, now: f"{d.compute_requested}%" + (f"+{d.compute_loaned}%" if d.compute_loaned else "")
        ),
        Column("REPLICAS", lambda d, now: str(d.clients)),
        Column("HEALTH", lambda d, now: "ok" if d.healthy else "unhealthy"),
        Column("RESERVE", lambda d, now: units.memory(d.memory_reserve), wide=True),
        Column("CLIENTS", lambda d, now: f"{d.clients}/{d.max_clients}", wide=True),
        Column("MECHANISMS", lambda d, now: ",".join(d.mechanisms), wide=True),
        Column("HOLDS", lambda d, now: ",".join(d.replicas) or units.NONE, wide=True),
    ),
)
TENANTS: Final[Kind[TenantView]] = Kind(
    "tenants",
    "tenant",
    ("t",),
    TenantView,
    lambda t: t.name,
    (
        Column("NAME", lambda t, now: t.name),
        Column("KEYS", lambda t, now: str(t.keys)),
        Column("REQUESTS", lambda t, now: str(t.usage.requests)),
        Column("ERRORS", lambda t, now: str(t.usage.errors)),
        Column("REFUSED", lambda t, now: str(sum(t.usage.refused.values()))),
        Column("SECONDS", lambda t, now: f"{t.usage.seconds:.0f}"),
        Column("PRIORITY", lambda t, now: str(t.priority), wide=True),
        Column("WEIGHT", lambda t, now: str(t.weight), wide=True),
        Column("MODELS", lambda t, now: "all" if t.models is None else ",".join(t.models) or units.NONE, wide=True),
    ),
)
DECISIONS: Final[Kind[DecisionView]] = Kind(
    "decisions",
    "decision",
    (),
    DecisionView,
    lambda d: str(d.id),
    (
        Column("ID", lambda d, now: str(d.id)),
        Column("AGE", lambda d, now: units.age(d.at, now)),
        Column("MODEL", lambda d, now: d.model),
        Column("REPLICAS", lambda d, now: _change(d)),
        Column("SIGNAL", lambda d, now: d.signal),
        Column("REASONS", lambda d, now: "; ".join(d.reasons), wide=True),
        Column("WHAT", lambda d, now: _what(d), free=True),
    ),
)
EVENTS: Final[Kind[EventView]] = Kind(
    "events",
    "event",
    ("ev",),
    EventView,
    lambda e: f"{e.model}.{e.reason}",
    (
        Column("AGE", lambda e, now: units.age(e.at, now)),
        Column("MODEL", lambda e, now: e.model),
        Column("REPLICA", lambda e, now: e.replica or units.NONE),
        Column("REASON", lambda e, now: e.reason),
        Column("MESSAGE", lambda e, now: e.message, free=True),
    ),
)
KINDS: Final[tuple[Kind[Any], ...]] = (MODELS, REPLICAS, DEVICES, TENANTS, DECISIONS, EVENTS)


def kind_of(word: str) -> Kind[Any] | None:
    """The noun a user means: plural, singular or short, in any case."""
    lowered = word.lower()
    return next((k for k in KINDS if lowered in (k.plural, k.singular, *k.short)), None)


def table(kind: Kind[V], views: Iterable[V], now: float, *, wide: bool = False, width: int | None = None) -> str:
    """The table of some views, a line each under the titles; `width` cuts free text, None never does."""
    shown = list(views)
    columns = [c for c in kind.columns if wide or not c.wide]
    columns = [c for c in columns if not c.free or any(c.text(v, now) for v in shown)]
    rows = [[" ".join(c.text(view, now).split()) for c in columns] for view in shown]
    return plain([c.title for c in columns], rows, width=width)


def plain(titles: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Columns aligned by blanks; a width cuts what the last column has beyond it, but leaves that a readable piece."""
    lines = [list(titles), *map(list, rows)]
    sizes = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    if width is not None:
        sizes[-1] = max(len(titles[-1]), _READABLE, width - sum(sizes[:-1]) - len(_GAP) * (len(sizes) - 1))
        lines = [[*line[:-1], _cut(line[-1], sizes[-1])] for line in lines]
    return "\n".join(
        _GAP.join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in lines
    )


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1].rstrip() + "…"
