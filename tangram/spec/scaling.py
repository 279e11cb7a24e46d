"""How many replicas a model has: bounds, targets, other metrics, and HPA v2's behavior."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, StringConstraints, field_validator, model_validator

from autoscaler.schedule import latest, parse
from tangram.spec.base import Doc, Name, NonNegative, Positive

#: Replicas of one model at most: a slip of the finger must not have the planner place a billion.
MAX_REPLICAS: Final = 10_000
#: Names that decisions give other reasons than a query.
_SIGNALS: Final = frozenset(
    (
        *("qps", "capacity", "concurrency", "cpu", "memory", "queue"),
        *("min", "max", "schedule", "fixed", "idle", "timer", "wake"),
        *("hold", "stabilization", "behavior", "tolerance", "advisory"),
    )
)
#: From where it is looked whether a cron expression has ever fired.
_ANY_DAY: Final = datetime(2030, 1, 1)  # noqa: DTZ001 (days are the same in every zone)


class MetricType(StrEnum):
    CPU = "cpu"
    """Percent of the CPU a replica may use (its compute share on a virtual device, else `resources.requests.cpu`)."""
    MEMORY = "memory"
    """Percent of `resources.requests.memory` in use."""
    DEVICE_MEMORY = "deviceMemory"
    """Percent of `slice.memory.request` in use."""
    CONCURRENCY = "concurrency"
    """Requests in flight and queued, a replica."""
    PROMETHEUS = "prometheus"
    """What the fleet's Prometheus answers to `query`."""


class TargetType(StrEnum):
    AVERAGE_VALUE = "AverageValue"
    """The query gives a sum over all replicas; the target is what one replica should have of it."""
    VALUE = "Value"
    """The query gives a level that more replicas lower, such as a mean; the target is where it should be."""


class Metric(Doc):
    type: MetricType
    target: Positive
    """Percent, or requests for `concurrency`: the mean a ready replica should not exceed."""
    name: Name | None = None
    """Of type `prometheus`: what the metric is called wherever it is shown."""
    query: Annotated[str, StringConstraints(min_length=1, max_length=4000)] | None = None
    """Of type `prometheus`: PromQL that gives a single number."""
    target_type: TargetType = TargetType.AVERAGE_VALUE
    """Of type `prometheus`: what the target is compared with."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.type is MetricType.PROMETHEUS:
            if self.query is None or self.name is None:
                raise ValueError("type prometheus needs name and query; give both")
            if self.name in _SIGNALS:
                raise ValueError(f"name {self.name!r} is a signal of Tangram's own; give another")
            return self
        if self.query is not None or self.name is not None:
            raise ValueError(f"name and query belong to type prometheus, not to {self.type.value}; leave them out")
        if self.type is not MetricType.CONCURRENCY and self.target > 100:
            raise ValueError(f"target {self.target:g} is more than 100 percent; give a percent up to 100")
        return self


class PolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


class HPAPolicy(Doc):
    type: PolicyType
    value: Annotated[int, Field(gt=0)]
    period_seconds: Annotated[int, Field(gt=0, le=1800)]


class SelectPolicy(StrEnum):
    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


class ScalingRules(Doc):
    """One direction of HPA v2's `behavior`; what is absent takes Tangram's default (docs/autoscaling.md)."""

    stabilization_window_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    select_policy: SelectPolicy = SelectPolicy.MAX
    policies: tuple[HPAPolicy, ...] | None = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] | None = None


class Behavior(Doc):
    scale_up: ScalingRules = ScalingRules()
    scale_down: ScalingRules = ScalingRules()


class ScalingMode(StrEnum):
    HONOUR = "honour"
    """Plan for at most `targetQPS` requests per second a ready replica."""
    LEARN = "learn"
    """`targetQPS` is only a first guess."""


class Objective(Doc):
    """A latency goal that can stand in the place of a QPS target."""

    latency_milliseconds: Positive
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0


class Schedule(Doc):
    """A window of time with bounds of its own, which hold in place of the model's while it is open.

    It opens and closes by cron expressions of five fields: minute, hour, day of month, month, day of week.
    """

    start: Annotated[str, StringConstraints(max_length=200)]
    """When it opens, for example `0 8 * * mon-fri`."""
    end: Annotated[str, StringConstraints(max_length=200)]
    """When it closes."""
    time_zone: str = "UTC"
    """Whose clock the expressions mean, for example Europe/Berlin."""
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """Of several open windows the greatest holds; a replica more than now is started in time for the window."""
    max_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """Of several open windows the least holds; 0 switches off a model whose minReplicas is 0."""

    @field_validator("start", "end")
    @classmethod
    def _cron(cls, value: str) -> str:
        if latest(parse(value), _ANY_DAY) is None:
            raise ValueError(f"cron expression {value!r} names a day that never comes; mend day of month or month")
        return value

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone known here; write for example Europe/Berlin or UTC") from None
        return value

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min_replicas is None and self.max_replicas is None:
            raise ValueError("neither minReplicas nor maxReplicas is given; give one or both")
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"minReplicas {self.min_replicas} is greater than maxReplicas {self.max_replicas}; "
                "lower minReplicas or raise maxReplicas"
            )
        return self


class Scaling(Doc):
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] | None = None
    """A fixed count, set by hand; the autoscaler then advises but does not act. Absent: automatic."""
    target_qps: Annotated[Positive | None, Field(alias="targetQPS")] = None
    """Requests per second that one ready replica should serve."""
    mode: ScalingMode = ScalingMode.HONOUR
    metrics: tuple[Metric, ...] = ()
    behavior: Behavior = Behavior()
    objective: Objective | None = None
    idle_seconds: NonNegative = 90.0
    """Without a request for this long, a model whose minReplicas is 0 goes to zero."""
    schedules: tuple[Schedule, ...] = ()
    advisory: bool = False
    """Decide and record, but do not act: the count stays what it is."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"minReplicas {self.min_replicas} is greater than maxReplicas {self.max_replicas}; "
                "lower minReplicas or raise maxReplicas"
            )
        if self.replicas is not None and self.replicas > self.max_replicas:
            raise ValueError(
                f"replicas {self.replicas} is greater than maxReplicas {self.max_replicas}; "
                "lower replicas or raise maxReplicas"
            )
        if len({(m.type, m.name) for m in self.metrics}) != len(self.metrics):
            raise ValueError("metrics names a type twice; keep one entry of each type (prometheus: of each name)")
        return self
