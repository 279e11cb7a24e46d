"""/metrics of a worker: a prometheus_client Collector that reads the meter when it is asked for.

Nothing is kept twice: what the path of a request counts are the meter's plain integers. `METRICS` is what is exported,
so that docs/metrics.md is made from code. Labels hold names of the table and words of fixed sets; requests for unknown
models are counted under the model "".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from gateway.dispatch import Dispatcher
from gateway.wire import LATENCY_BOUNDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

#: (name, type, labels, help) of everything a gateway worker exports.
METRICS: Final[Sequence[tuple[str, str, tuple[str, ...], str]]] = (
    (
        "gateway_requests_total",
        "counter",
        ("model", "code"),
        "Requests by status. 499: the client left first; an answer cut short counts as 502 or 504; "
        'model "": no model of the table.',
    ),
    (
        "gateway_request_duration_seconds",
        "histogram",
        ("model",),
        "Seconds from arrival to the end of the answer, of requests that a replica answered in full.",
    ),
    (
        "gateway_queued_requests",
        "gauge",
        ("model",),
        "Requests that wait for an endpoint.",
    ),
    (
        "gateway_queued_seconds_total",
        "counter",
        ("model",),
        "Request-seconds spent waiting for an endpoint: its rate is the mean number that waits.",
    ),
    (
        "gateway_inflight_requests",
        "gauge",
        ("model", "replica"),
        "Requests sent to a replica and not finished.",
    ),
    (
        "gateway_inflight_seconds_total",
        "counter",
        ("model", "replica"),
        "Request-seconds in flight: its rate is the mean number in flight.",
    ),
    (
        "gateway_replica_requests_total",
        "counter",
        ("model", "replica"),
        "Requests sent to a replica, repeats included.",
    ),
    (
        "gateway_replica_failures_total",
        "counter",
        ("model", "replica"),
        "Requests that a replica refused, broke off, answered with 5xx or not in time.",
    ),
    (
        "gateway_replica_ejected",
        "gauge",
        ("model", "replica"),
        "1 while a replica gets nothing new because it fails or is slow, else 0.",
    ),
    (
        "gateway_replica_ejections_total",
        "counter",
        ("model", "reason"),
        "Ejections of replicas: unreachable, errors, slow, silent.",
    ),
    (
        "gateway_refused_requests_total",
        "counter",
        ("model", "reason"),
        "Requests that the gateway refused: queue_full, queue_timeout, no_replicas, unavailable, asleep; of tenants "
        "rate_limit, concurrency_limit, forbidden; of copies for a mirror mirror_dropped.",
    ),
    (
        "gateway_tenant_requests_total",
        "counter",
        ("tenant", "model", "code"),
        "Requests of a tenant that were within its limits, by status.",
    ),
    (
        "gateway_tenant_request_seconds_total",
        "counter",
        ("tenant", "model"),
        "Request-seconds of a tenant, waiting included.",
    ),
    (
        "gateway_tenant_refused_requests_total",
        "counter",
        ("tenant", "reason"),
        "Requests of a tenant that were not: rate_limit, concurrency_limit, forbidden.",
    ),
    (
        "gateway_tenant_inflight_requests",
        "gauge",
        ("tenant",),
        "Requests of a tenant in progress.",
    ),
    (
        "gateway_cancelled_requests_total",
        "counter",
        ("model",),
        "Requests whose client left before the answer was complete.",
    ),
    (
        "gateway_retries_total",
        "counter",
        ("model",),
        "Requests sent again after a connection broke before the first byte of an answer.",
    ),
    (
        "gateway_hedges_total",
        "counter",
        ("model",),
        "Slow requests that were also sent to a second replica.",
    ),
    (
        "gateway_hedges_won_total",
        "counter",
        ("model",),
        "Of those, requests that the second replica answered first.",
    ),
    (
        "gateway_upstream_connections",
        "gauge",
        ("replica", "state"),
        "Connections to a replica, busy or idle.",
    ),
    (
        "gateway_client_connections",
        "gauge",
        (),
        "Open connections of clients.",
    ),
    (
        "gateway_table_term",
        "gauge",
        (),
        "Term of the routing table in use: which controller it comes from; 0 without a table.",
    ),
    (
        "gateway_table_number",
        "gauge",
        (),
        "Number of the routing table in use within its term.",
    ),
    (
        "gateway_controller_connected",
        "gauge",
        (),
        "1 while the worker is connected to the controller, else 0.",
    ),
    (
        "gateway_ready",
        "gauge",
        (),
        "1 while the worker has a table and is not about to leave, else 0.",
    ),
)

_KINDS: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


class WorkerCollector:
    """The figures of one worker; the callables give what the dispatcher does not know."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        connections: Callable[[], Mapping[str, tuple[int, int]]],
        clients: Callable[[], int],
        connected: Callable[[], bool],
        ready: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        self._dispatcher = dispatcher
        self._connections = connections
        self._clients = clients
        self._connected = connected
        self._ready = ready
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """All families of METRICS, in its order."""
        families: dict[str, Metric] = {
            name: _KINDS[kind](name, text, labels=labels) for name, kind, labels, text in METRICS
        }

        def put(name: str, value: float, *labels: str) -> None:
            families[name].add_metric(labels, value)  # type: ignore[attr-defined]

        now = self._now()
        meter = self._dispatcher.meter
        for code, count in sorted(meter.unrouted.items()):
            put("gateway_requests_total", count, "", str(code))
        durations = families["gateway_request_duration_seconds"]
        assert isinstance(durations, HistogramMetricFamily)
        for name, model in sorted(meter.models.items()):
            for code, count in sorted(model.codes.items()):
                put("gateway_requests_total", count, name, str(code))
            total = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip((*map(str, LATENCY_BOUNDS), "+Inf"), model.buckets, strict=True):
                total += count
                buckets.append((bound, total))
            durations.add_metric([name], buckets, model.latency_s)
            put("gateway_queued_requests", model.queue.value, name)
            put("gateway_queued_seconds_total", model.queue.area(now), name)
            for id, endpoint in sorted(model.endpoints.items()):
                put("gateway_inflight_requests", endpoint.flight.value, name, id)
                put("gateway_inflight_seconds_total", endpoint.flight.area(now), name, id)
                put("gateway_replica_requests_total", endpoint.requests, name, id)
                put("gateway_replica_failures_total", endpoint.failures, name, id)
            served = self._dispatcher.find(name)
            if served is not None:
                for one in sorted(served.route.usable, key=lambda e: e.id):
                    put("gateway_replica_ejected", int(one.vitals.ejected is not None), name, one.id)
                for why, count in sorted(served.route.detector.counts.items()):
                    put("gateway_replica_ejections_total", count, name, why.value)
            for reason, count in sorted(model.refused.items()):
                put("gateway_refused_requests_total", count, name, reason)
            put("gateway_cancelled_requests_total", model.cancelled, name)
            put("gateway_retries_total", model.retries, name)
            put("gateway_hedges_total", model.hedges, name)
            put("gateway_hedges_won_total", model.hedges_won, name)
        for name, tenant in sorted(self._dispatcher.tenants.by_name.items()):
            for (model_name, status), count in sorted(tenant.usage.requests.items()):
                put("gateway_tenant_requests_total", count, name, model_name, str(status))
            for model_name, seconds in sorted(tenant.usage.seconds.items()):
                put("gateway_tenant_request_seconds_total", seconds, name, model_name)
            for reason, count in sorted(tenant.usage.refused.items()):
                put("gateway_tenant_refused_requests_total", count, name, reason)
            put("gateway_tenant_inflight_requests", tenant.in_flight, name)
        for id, (busy, idle) in sorted(self._connections().items()):
            put("gateway_upstream_connections", busy, id, "busy")
            put("gateway_upstream_connections", idle, id, "idle")
        term, number = self._dispatcher.version
        put("gateway_client_connections", self._clients())
        put("gateway_table_term", term)
        put("gateway_table_number", number)
        put("gateway_controller_connected", int(self._connected()))
        put("gateway_ready", int(self._ready()))
        return families.values()


def registry(collector: WorkerCollector) -> CollectorRegistry:
    """The worker's figures and those of its process."""
    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    return made


def render(source: CollectorRegistry) -> bytes:
    """The page in Prometheus' text format."""
    return generate_latest(source)
