"""`tangram describe model NAME`: everything about one model, as kubectl lays it out."""

from __future__ import annotations

from collections.abc import Iterable

from tangram.console import tables, units
from tangram.control.views import DescribeView, ModelView, StatusView, WorkerView
from tangram.spec import Hedge, Model, Schedule, SliceSpec

_INDENT = "  "


def describe(view: DescribeView, now: float, *, width: int | None = None) -> str:
    """The whole text; `width` cuts the free text of its tables."""
    inner = None if width is None else max(40, width - len(_INDENT))
    model = view.model
    lines = [*_fields(_head(view, now)), "Slice:", *_fields(_slice(view.spec), 1), "Scaling:"]
    lines += [*_fields(_scaling(model, view.spec), 1), "Traffic:", *_fields(_traffic(model, view.spec), 1)]
    lines += ["Conditions:"]
    conditions = [[c.type, c.status, c.reason, c.message] for c in model.conditions]
    lines += _table(tables.plain(["TYPE", "STATUS", "REASON", "MESSAGE"], conditions, width=inner), conditions)
    lines += ["Replicas:", *_table(tables.table(tables.REPLICAS, view.replicas, now, width=inner), view.replicas)]
    lines += ["Decisions:", *_table(tables.table(tables.DECISIONS, view.decisions, now, width=inner), view.decisions)]
    lines += ["Events:", *_table(tables.table(tables.EVENTS, view.events, now, width=inner), view.events)]
    return "\n".join(lines)


def _head(view: DescribeView, now: float) -> list[tuple[str, str]]:
    model, spec = view.model, view.spec
    runtime = spec.spec.runtime
    source = runtime.model or " ".join(runtime.command) or runtime.image or ""
    return [
        ("Name", model.name),
        ("Project", model.project),
        ("Priority", str(model.priority)),
        ("Labels", _pairs(spec.metadata.labels)),
        ("Revision", model.revision),
        ("Age", units.age(model.created_at, now)),
        ("Runtime", f"{model.runtime} {source} ({runtime.protocol.value})"),
        ("Status", tables.status_of(model)),
    ]


def _slice(spec: Model) -> list[tuple[str, str]]:
    wanted = spec.spec.slice
    selector = wanted.device_selector
    requests = spec.spec.resources.requests
    memory = f"{units.memory(wanted.memory.request)}, up to {units.memory(wanted.memory.effective_limit)}"
    if wanted.whole:
        memory = f"all of each device, which is {units.memory(wanted.memory.request)} at least"
    return [
        ("Spans", f"{wanted.devices} whole devices of one node" if wanted.whole else ""),
        ("Memory", memory),
        ("Compute", _compute(wanted)),
        ("Mechanism", wanted.mechanism.value),
        ("Devices", ", ".join(filter(None, [*selector.models, _pairs(selector.match_labels)])) or "any"),
        ("Host", f"{requests.cpu / 1000:g} cores, {units.memory(requests.memory)}"),
    ]


def _compute(wanted: SliceSpec) -> str:
    if not wanted.compute:
        return "best effort"
    return f"{wanted.compute}%" + (f", up to {wanted.compute_limit}%" if wanted.compute_limit else "")


def _pairs(labels: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items()))


def _scaling(model: ModelView, spec: Model) -> list[tuple[str, str]]:
    scaling = spec.spec.scaling
    fixed = "" if model.fixed_replicas is None else f" (set by hand to {model.fixed_replicas})"
    if model.advised is not None:
        fixed = f" (advisory: would be {model.advised})"
    metrics = ", ".join(f"{m.name or m.type.value} {m.target:g}" for m in scaling.metrics)
    return [
        (
            "Replicas",
            f"{model.ready} ready, {model.starting} starting, {model.draining} draining, "
            f"{model.desired} desired{fixed}",
        ),
        ("Range", f"{model.min_replicas} to {model.max_replicas}"),
        *(("Schedule", _schedule(schedule)) for schedule in scaling.schedules),
        ("Windows", model.window or ("none is open" if scaling.schedules else "")),
        (
            "Target QPS",
            f"{units.number(model.target_qps)} a replica ({scaling.mode.value})" if model.target_qps else "",
        ),
        ("Metrics", metrics),
        ("Decided by", model.signal),
    ]


def _schedule(schedule: Schedule) -> str:
    bounds = [
        f"{word} {count}"
        for word, count in (("min", schedule.min_replicas), ("max", schedule.max_replicas))
        if count is not None
    ]
    return f"{schedule.start!r} to {schedule.end!r} ({schedule.time_zone}): {', '.join(bounds)}"


def _traffic(model: ModelView, spec: Model) -> list[tuple[str, str]]:
    traffic = spec.spec.traffic
    return [
        ("QPS", units.number(model.qps)),
        ("In flight", f"{model.in_flight} (at most {traffic.concurrency_per_replica or 'any number'} a replica)"),
        ("Queued", f"{model.queued} (at most {traffic.queue.max_requests}, {traffic.queue.max_seconds:g}s)"),
        ("Latency", f"p50 {units.milliseconds(model.p50_ms)}, p99 {units.milliseconds(model.p99_ms)}"),
        ("Timeout", f"{traffic.timeout_seconds:g}s"),
        ("Hedging", "" if traffic.hedge is None else _hedging(traffic.hedge)),
    ]


def _hedging(hedge: Hedge) -> str:
    if hedge.after_seconds is None:
        when = f"slower than {hedge.after_percentile:g}% of the last"
    else:
        when = f"after {hedge.after_seconds:g}s"
    return f"{when}, at most {hedge.max_percent:g}% of the requests"


def _fields(fields: Iterable[tuple[str, str]], depth: int = 0) -> list[str]:
    shown = [(title, text) for title, text in fields if text]
    size = 14 - len(_INDENT) * depth
    return [f"{_INDENT * depth}{title + ':':<{size}}{text}" for title, text in shown]


def _table(text: str, rows: object) -> list[str]:
    return [_INDENT + line for line in text.splitlines()] if rows else [_INDENT + "none"]


def status(view: StatusView, admin: str, now: float) -> str:
    """`tangram status`: the installation as a whole."""
    fields = [
        ("Version", view.version),
        ("Gateway", view.gateway),
        ("Admin", admin),
        (
            "Controller",
            f"up {units.age(view.started_at, now)}, term {view.term}" + (", adopting" if view.adopting else ""),
        ),
        ("Models", str(view.models)),
        ("Replicas", str(view.replicas)),
        ("Oversold", ", ".join(view.oversold) or "none"),
    ]
    workers = [[*map(str, (w.index, w.pid, w.port, w.admin_port)), _applied(w)] for w in view.workers]
    table = tables.plain(["WORKER", "PID", "PORT", "ADMIN PORT", "TABLE"], workers)
    return "\n".join([*_fields(fields), "Workers:", *_table(table, workers)])


def _applied(worker: WorkerView) -> str:
    term, number = worker.applied
    return f"{term}.{number}" if worker.connected else f"{term}.{number}, not connected"
