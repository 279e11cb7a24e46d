"""What the admin API shows, as pydantic models: the schema of its OpenAPI document and what the CLI renders.

Field names are camelCase on the wire. Memory is in MiB, compute and CPU in percent, times are Unix seconds, rates are
requests per second.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tangram.spec import Model


class _View(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class ErrorView(_View):
    """Body of every answer of 400 and above."""

    error: str
    details: tuple[str, ...] = ()


class SignalView(_View):
    name: str
    value: float | None
    target: float
    replicas: int | None
    note: str = ""


class ConditionView(_View):
    """As in Kubernetes: Ready, Placed, Progressing, ..."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""


class ModelView(_View):
    name: str
    project: str
    priority: int
    runtime: str
    ready: int
    starting: int
    draining: int
    desired: int
    """The count that is acted on."""
    advised: int | None = None
    """In advisory mode: what the count would be."""
    window: str = ""
    """The schedules' windows that are open, or about to be."""
    min_replicas: int
    max_replicas: int
    fixed_replicas: int | None = None
    target_qps: float | None = Field(default=None, alias="targetQPS")
    qps: float | None = Field(default=None)
    """Arrivals, None before the first full window."""
    capacity: float | None = None
    """Requests per second that a replica is known to carry, as learned; None before enough was seen."""
    in_flight: int = 0
    queued: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    signal: str = ""
    revision: str
    conditions: tuple[ConditionView, ...] = ()
    created_at: float


ReplicaPhase = Literal["Pending", "Starting", "Ready", "Unready", "Draining", "Stopping", "CrashLoopBackOff"]


class ReplicaView(_View):
    name: str
    model: str
    revision: str
    phase: ReplicaPhase
    node: str
    device: str
    """The first of its devices."""
    devices: tuple[str, ...]
    """All of them, in its order."""
    links: str = ""
    """How several devices are linked, in words."""
    memory_request: int
    """Of all its devices together, as are the limit and what is measured."""
    memory_limit: int
    compute: int
    """Of each of its devices."""
    loaned_compute: int = 0
    """Percent beyond its slice, for the time being."""
    mechanism: str
    port: int
    pid: int | None = None
    restarts: int = 0
    in_flight: int = 0
    cpu_percent: float | None = None
    memory: float | None = None
    ejected: str = ""
    """Why gateway workers send it nothing new at present, though it is ready."""
    created_at: float
    started_at: float | None = None
    ready_at: float | None = None
    message: str = ""


class DeviceView(_View):
    id: str
    node: str
    model: str
    memory_total: int
    memory_reserve: int
    memory_requested: int
    """Sum of requests (the guaranteed ledger)."""
    memory_used: float | None = None
    """Measured."""
    compute_requested: int
    compute_loaned: int = 0
    clients: int
    max_clients: int
    mechanisms: tuple[str, ...]
    healthy: bool = True
    replicas: tuple[str, ...] = ()
    links: dict[str, int] = {}
    """By device of the same node: how many NVLinks lead to it."""
    distances: dict[str, str] = {}
    """By device of the same node: how far it is over PCIe, as `nvidia-smi topo -m` has it."""


class PlacementView(_View):
    replica: str
    device: str
    """The first."""
    devices: tuple[str, ...] = ()
    """All, where there are several."""
    score: float
    """Higher is better; comparable within one placement only. `why` says it in words."""
    why: str
    alternatives: tuple[str, ...] = ()


class DecisionView(_View):
    """One turn of the loop for one model in which something changed or was refused."""

    id: int
    at: float
    model: str
    previous: int
    wanted: int
    """Recommended."""
    desired: int | None = None
    """In advisory mode: the count that is acted on; else it is the one wanted."""
    granted: int
    """Of the count acted on."""
    signal: str
    signals: tuple[SignalView, ...] = ()
    reasons: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    """In words, in order."""
    placements: tuple[PlacementView, ...] = ()
    refused: tuple[str, ...] = ()
    """Why replicas that were wanted found no place, per device class."""
    shared: str = ""
    """What it was granted of a fleet that cannot hold what all models want, where that is less than it wants."""
    waiting: str = ""
    """Why nothing is started at present though more is wanted: starts that failed, until when."""


class ExplainView(_View):
    """Why this many, why there."""

    model: str
    at: float
    summary: str
    qps: float | None = None
    latest: DecisionView | None = None
    """The latest turn of the loop for this model, acted or not."""
    decisions: tuple[DecisionView, ...] = ()
    """The last few that changed something, newest first."""
    replicas: tuple[ReplicaView, ...] = ()


class EventView(_View):
    """One thing that happened to a model or replica, for `describe`."""

    at: float
    model: str
    replica: str = ""
    reason: str
    message: str


class DescribeView(_View):
    model: ModelView
    spec: Model
    replicas: tuple[ReplicaView, ...]
    events: tuple[EventView, ...]
    decisions: tuple[DecisionView, ...]


class ModelUsageView(_View):
    """What a tenant used of one model, since it was declared."""

    model: str
    requests: int
    """Within its limits, however they ended."""
    errors: int
    """Those of them that ended with 5xx."""
    seconds: float
    """Request-seconds, waiting included."""
    codes: dict[str, int]
    """Requests by status; 499: the client left."""


class TenantUsageView(_View):
    """What a tenant used since it was declared, over all workers and their restarts; at most seconds old."""

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    refused: dict[str, int] = {}
    """By reason: requests that the tenant's limits refused."""
    models: tuple[ModelUsageView, ...] = ()


class TenantView(_View):
    name: str
    priority: int
    weight: int
    models: tuple[str, ...] | None = None
    """None: all."""
    keys: int
    """How many there are."""
    usage: TenantUsageView = TenantUsageView()


class KeyView(_View):
    """A key without its secret, which is not stored."""

    id: str
    tenant: str
    created_at: float | None = None
    """None: its tenant's document declares it."""


class NewKeyView(_View):
    """A key, shown this once."""

    id: str
    tenant: str
    key: str
    created_at: float


class NewKeyRequest(_View):
    """Nothing is asked for but the tenant, which the path names."""


class RevisionView(_View):
    number: int
    revision: str
    current: bool
    created_at: float
    failed: str = ""
    """Why it was rolled back."""


class RolloutView(_View):
    """How the last change of revision stands."""

    model: str
    stage: Literal["None", "Canary", "Rolling", "Complete", "RolledBack", "Cancelled"]
    """None: the revision has never changed."""
    revision: str
    former: str = ""
    step: int = 0
    """Of the canary, from 1; 0 outside of it."""
    steps: int = 0
    percent: int | None = None
    """Of the requests that the canary gets."""
    ready: int = 0
    """Replicas of the revision."""
    wanted: int = 0
    old: int = 0
    """Replicas of other revisions that are not on their way out."""
    requests: int = 0
    failures: int = 0
    """Of the requests to replicas of the revision."""
    began_at: float | None = None
    message: str = ""
    revisions: tuple[RevisionView, ...] = ()
    """On record, newest first."""


class UndoRequest(_View):
    """The revision to go back to, by its number; the one before the present one where absent."""

    to_revision: int | None = Field(default=None, ge=1)


class WorkerView(_View):
    index: int
    pid: int
    port: int
    admin_port: int
    connected: bool
    applied: tuple[int, int]


class StatusView(_View):
    """Of the whole: what `up` waits for and `top` shows on its first line."""

    version: str
    term: int
    adopting: bool
    gateway: str
    """URL."""
    workers: tuple[WorkerView, ...]
    models: int
    replicas: int
    oversold: tuple[str, ...] = ()
    """Devices whose guarantees exceed their capacity; always empty unless something is wrong."""
    require_key: bool = False
    """Requests want a tenant's key."""
    started_at: float


class ApplyRequest(_View):
    """Raw documents (Model, Fleet) as in a YAML file; all are taken or none."""

    documents: tuple[dict[str, object], ...]
    dry_run: bool = False


class AppliedView(_View):
    kind: Literal["Model", "Fleet", "Tenant"]
    name: str
    change: Literal["created", "configured", "unchanged"]


class ApplyView(_View):
    applied: tuple[AppliedView, ...]


class ScaleRequest(_View):
    """What `tangram set` changes; absent fields stay. `replicas: "auto"` ends a fixed count."""

    replicas: int | Literal["auto"] | None = None
    target_qps: float | None = Field(default=None, alias="targetQPS", gt=0)
    min_replicas: int | None = Field(default=None, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)


class PackedReplicaView(_View):
    model: str
    replica: str
    device: str | None
    """The first; None: it has no place."""
    devices: tuple[str, ...]
    """All; empty: it has no place."""
    spans: int = 1
    """Devices that it asks for."""
    memory: int
    """Of all its devices together."""
    compute: int
    """Of each of its devices."""
    why: str


class PackView(_View):
    """A placement worked out and not carried out."""

    replicas: tuple[PackedReplicaView, ...]
    devices: tuple[DeviceView, ...]
    room: dict[str, int]
    """How many more replicas of each model would fit."""
