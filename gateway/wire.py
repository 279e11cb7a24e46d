"""What the controller and the gateway workers say to each other: one JSON message a WebSocket text frame.

Down, controller to worker: a `Snapshot` on connect, then an `Update` or `Removal` per model, or `SettingsUpdate`. Each
carries a version `(term, number)`: the term grows with each start of a controller, the number with each message of that
term. A worker takes only what is newer than what it has, and serves on from its last table without a controller.

Up, worker to controller: a `Hello` on connect, a `Report` every second, and a `Wake` at once when a model without a
usable endpoint is asked for. Counters and time-integrals in a report are *cumulative* since the worker's start, named
by its `epoch`, so that a lost report costs nothing. A report may leave out models, endpoints and tenants that have not
changed since the last one on this connection; the first report of a connection holds all.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

#: Upper bounds, in seconds, of the latency buckets in `ModelCounters.latency_buckets`; one more bucket is unbounded.
LATENCY_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Version = tuple[int, int]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


# --- down ----------------------------------------------------------------------------------------------------------


class EndpointEntry(_Message):
    """A ready replica as the gateway may use it."""

    id: str
    """Name of the replica; unique for ever."""
    host: str
    port: int
    weight: int = 1
    concurrency: int = 0
    """Requests in flight at most, over all workers; 0 is unbounded."""
    slot: int = 0
    """Column of this endpoint in the memory that workers share; unique among the live endpoints."""
    draining: bool = False
    """Finish what is in flight, send nothing new."""
    canary: bool = False
    """Of the revision that is coming in; gets `ModelEntry.canary_percent` of the requests."""


class Health(_Message):
    """When an endpoint is ejected and how it comes back; see gateway.health."""

    consecutive_errors: int = 5
    """Failures in a row that eject; 0: none do."""
    slow_factor: float = 5.0
    """Multiple of its peers' typical time to the first byte that ejects; 0: slowness does not."""
    ejection_s: float = 10.0
    """Of the first ejection; each one in a row lasts twice as long."""
    max_ejection_s: float = 300.0
    max_ejected_percent: int = 50
    slow_start_s: float = 0.0
    """Seconds in which the share of a new endpoint grows to the whole."""
    probe_path: str = "/v2/health/ready"
    probe_timeout_s: float = 1.0


class Hedge(_Message):
    """When a slow request is also sent to a second endpoint; see gateway.hedging."""

    after_s: float | None = None
    """Seconds; None: the percentile of recent times to the first byte."""
    percentile: float = 95.0
    max_percent: float = 10.0
    """Of the requests that may be hedged."""


class SplitTarget(_Message):
    """Another model that gets a share of the requests for this one."""

    model: str
    percent: float


class TenantKey(_Message):
    id: str
    sha256: str
    """Hex digest of the whole key."""


class TenantLimit(_Message):
    model: str = ""
    """Empty: over all models."""
    requests_per_s: float = 0.0
    """Over all workers; 0 is unbounded."""
    burst: int = 0
    """Requests at once; 0: those of one second."""
    concurrency: int = 0
    """Requests in progress at most, over all workers; 0 is unbounded."""
    slot: int = 0
    """Column in the memory that workers share; no endpoint and no other limit has it."""


class TenantEntry(_Message):
    """Who may ask, for what, and how much."""

    name: str
    keys: tuple[TenantKey, ...] = ()
    models: tuple[str, ...] | None = None
    """None: all."""
    priority: int = 0
    weight: int = 1
    limits: tuple[TenantLimit, ...] = ()


class Settings(_Message):
    """What holds for all models."""

    tenants: tuple[TenantEntry, ...] = ()
    require_key: bool = False
    """Refuse who shows no key of a tenant."""
    queue_max_requests: int = 10_000
    """Bounds of all waiting rooms together, over all workers."""
    queue_max_bytes: int = 256 * 1024 * 1024


class ModelEntry(_Message):
    """All a worker knows of one model."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other names that requests may give."""
    rename_aliases: bool = False
    """Whether a request that gives an alias is forwarded with the model's own name; else as it came."""
    protocol: Literal["oip", "openai", "http"] = "oip"
    endpoints: tuple[EndpointEntry, ...] = ()
    timeout_s: float = 60.0
    queue_max_requests: int = 1000
    """Over all workers, like the bytes."""
    queue_max_bytes: int = 64 * 1024 * 1024
    queue_max_s: float = 30.0
    slot: int = 0
    """Column of its waiting rooms in the memory that workers share; no other model has it."""
    retry_attempts: int = 1
    retry_all_methods: bool = False
    max_replicas: int = 1
    """0 where the operator set the model to no replicas: requests are refused, not queued."""
    starting: int = 0
    """Replicas on their way."""
    expected_ready_s: float | None = None
    """Seconds until the next replica is expected to be ready, as of this message; None if none is on its way."""
    unavailable: str | None = None
    """Why no replica can come at present (nothing fits, it crashes); None if nothing is known to stand in the way."""
    hedge: Hedge | None = None
    """None: a request is never sent to two endpoints at a time."""
    health: Health = Health()
    canary_percent: int | None = None
    """Share of the requests for endpoints that are canaries; None: they are like the others."""
    split: tuple[SplitTarget, ...] = ()
    sticky_header: str = ""
    """Requests with the same value of this field go to the same endpoint; empty: none do."""
    mirror: str = ""
    """Model that gets copies of requests; empty: none."""
    mirror_percent: float = 100.0


class Snapshot(_Message):
    """The whole table; models that are not in it are gone."""

    type: Literal["snapshot"] = "snapshot"
    term: int
    number: int
    models: tuple[ModelEntry, ...]
    settings: Settings = Settings()


class Update(_Message):
    type: Literal["update"] = "update"
    term: int
    number: int
    model: ModelEntry


class Removal(_Message):
    type: Literal["removal"] = "removal"
    term: int
    number: int
    name: str


class SettingsUpdate(_Message):
    type: Literal["settings"] = "settings"
    term: int
    number: int
    settings: Settings


Down = Annotated[Snapshot | Update | Removal | SettingsUpdate, Field(discriminator="type")]


# --- up ------------------------------------------------------------------------------------------------------------


class Hello(_Message):
    type: Literal["hello"] = "hello"
    worker: int
    """Index among the workers of this gateway."""
    epoch: str
    """Random at each start of the worker; counters begin at zero with it."""
    pid: int
    port: int
    """Where it serves requests."""
    admin_port: int
    """Where it serves /metrics, /healthz and /readyz."""


class EndpointCounters(_Message):
    id: str
    requests: int = 0
    """Sent to this endpoint, cumulative."""
    completions: int = 0
    """Answered in full, whatever the status, cumulative."""
    failures: int = 0
    """Refused, cut, timed out or answered 5xx, cumulative."""
    busy_s: float = 0.0
    """Seconds with at least one request in flight, cumulative."""
    in_flight_s: float = 0.0
    """Integral of requests in flight over time (request-seconds), cumulative."""
    in_flight: int = 0
    """Now."""
    ejected: str = ""
    """Why the worker gives it nothing new at present (see gateway.health); empty: it does."""


class ModelCounters(_Message):
    name: str
    arrivals: int = 0
    """Requests that named this model, refused ones included, cumulative."""
    completions: int = 0
    """Requests answered by a replica in full, cumulative."""
    errors: int = 0
    """Requests that a replica answered with 5xx or that ended in 502 or 504, cumulative."""
    refused: int = 0
    """429 and 503 of the gateway itself, cumulative."""
    cancelled: int = 0
    """Clients that left, cumulative."""
    latency_s: float = 0.0
    """Sum of seconds from arrival to the end of the answer over completions, cumulative."""
    latency_buckets: tuple[int, ...] = ()
    """Completions per bucket of LATENCY_BOUNDS (one more at the end; each counts once), cumulative."""
    queued_s: float = 0.0
    """Integral of queued requests over time (request-seconds), cumulative."""
    in_flight_s: float = 0.0
    """Integral of requests in flight to replicas over time (request-seconds), cumulative."""
    queued: int = 0
    """Now."""
    in_flight: int = 0
    """Now."""
    endpoints: tuple[EndpointCounters, ...] = ()
    """Endpoints of the table, and removed ones until nothing is in flight to them."""


class TenantCounters(_Message):
    """What a tenant used in this worker, cumulative."""

    name: str
    requests: tuple[tuple[str, int, int], ...] = ()
    """(model, code, requests that ended so)."""
    seconds: tuple[tuple[str, float], ...] = ()
    """(model, request-seconds, waiting included)."""
    refused: tuple[tuple[str, int], ...] = ()
    """(reason, requests that a limit of the tenant refused)."""


class Report(_Message):
    type: Literal["report"] = "report"
    worker: int
    epoch: str
    uptime_s: float
    """Seconds since the epoch began, by the worker's monotonic clock: when the counters below were read."""
    applied: Version
    """Version of the table in use; (0, 0) before any."""
    models: tuple[ModelCounters, ...] = ()
    tenants: tuple[TenantCounters, ...] = ()


class Wake(_Message):
    """A model without a usable endpoint was asked for; sent once until the table of that model changes."""

    type: Literal["wake"] = "wake"
    worker: int
    model: str


Up = Annotated[Hello | Report | Wake, Field(discriminator="type")]

_DOWN: Final[TypeAdapter[Snapshot | Update | Removal | SettingsUpdate]] = TypeAdapter(Down)
_UP: Final[TypeAdapter[Hello | Report | Wake]] = TypeAdapter(Up)


def parse_down(text: str | bytes) -> Snapshot | Update | Removal | SettingsUpdate:
    """A message to a worker; raises pydantic.ValidationError on anything else."""
    return _DOWN.validate_json(text)


def parse_up(text: str | bytes) -> Hello | Report | Wake:
    """A message to the controller; raises pydantic.ValidationError on anything else."""
    return _UP.validate_json(text)
