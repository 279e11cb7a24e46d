"""What the controller and the gateway workers say to each other: one JSON message a WebSocket text frame.

Down, controller to worker: a `Snapshot` on connect, then an `Update` or `Removal` per model. Each carries a version
`(term, number)`: the term grows with each start of a controller, the number with each message of that term. A worker
takes only what is newer than what it has, and serves on from its last table without a controller.

Up, worker to controller: a `Hello` on connect, a `Report` every second, and a `Wake` at once when a model without a
usable endpoint is asked for. Counters and time-integrals in a report are *cumulative* since the worker's start, named
by its `epoch`, so that a lost report costs nothing. A report may leave out models and endpoints that have not changed
since the last one on this connection; the first report of a connection holds all.
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


class ModelEntry(_Message):
    """All a worker knows of one model."""

    name: str
    aliases: tuple[str, ...] = ()
    """Other names that requests may give; they are forwarded as they came."""
    protocol: Literal["oip", "openai", "http"] = "oip"
    endpoints: tuple[EndpointEntry, ...] = ()
    timeout_s: float = 60.0
    queue_max_requests: int = 1000
    queue_max_bytes: int = 64 * 1024 * 1024
    queue_max_s: float = 30.0
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


class Snapshot(_Message):
    """The whole table; models that are not in it are gone."""

    type: Literal["snapshot"] = "snapshot"
    term: int
    number: int
    models: tuple[ModelEntry, ...]


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


Down = Annotated[Snapshot | Update | Removal, Field(discriminator="type")]


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


class Report(_Message):
    type: Literal["report"] = "report"
    worker: int
    epoch: str
    uptime_s: float
    """Seconds since the epoch began, by the worker's monotonic clock: when the counters below were read."""
    applied: Version
    """Version of the table in use; (0, 0) before any."""
    models: tuple[ModelCounters, ...] = ()


class Wake(_Message):
    """A model without a usable endpoint was asked for; sent once until the table of that model changes."""

    type: Literal["wake"] = "wake"
    worker: int
    model: str


Up = Annotated[Hello | Report | Wake, Field(discriminator="type")]

_DOWN: Final[TypeAdapter[Snapshot | Update | Removal]] = TypeAdapter(Down)
_UP: Final[TypeAdapter[Hello | Report | Wake]] = TypeAdapter(Up)


def parse_down(text: str | bytes) -> Snapshot | Update | Removal:
    """A message to a worker; raises pydantic.ValidationError on anything else."""
    return _DOWN.validate_json(text)


def parse_up(text: str | bytes) -> Hello | Report | Wake:
    """A message to the controller; raises pydantic.ValidationError on anything else."""
    return _UP.validate_json(text)
