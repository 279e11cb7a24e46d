"""The autoscaler's nouns: what is asked of it (ScalingPolicy), what it is shown (Sample), what it says
(Recommendation).

Times are seconds on the caller's clock; rates are requests per second; percentages are 0 to 100 (CPU may exceed it).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from typing import Literal, NamedTuple

from autoscaler.words import Words, text

MetricName = Literal["cpu", "memory", "deviceMemory", "concurrency"]


@dataclass(frozen=True, slots=True)
class MetricTarget:
    name: MetricName
    target: float
    """Mean over ready replicas: percent, or requests in flight and queued a replica for concurrency."""


@dataclass(frozen=True, slots=True)
class ExternalTarget:
    """A metric that somebody else measures, as in HPA v2."""

    name: str
    target: float
    type: Literal["AverageValue", "Value"] = "AverageValue"
    """AverageValue: the metric is a sum, the target what one replica should have of it. Value: the metric is a level
    that more replicas lower in proportion, the target where it should be."""


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """HPA v2 scaling policy: at most `value` replicas (Pods) or percent of replicas (Percent) in `period_s` seconds."""

    type: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """One direction of HPA v2's behavior, defaults filled in."""

    stabilization_s: float
    select: Literal["Max", "Min", "Disabled"]
    policies: tuple[RatePolicy, ...]
    tolerance: float
    """Fraction of the current count by which the wanted count must differ."""


@dataclass(frozen=True, slots=True)
class Behavior:
    up: Rules
    down: Rules


@dataclass(frozen=True, slots=True)
class Objective:
    """A latency goal: `percentile` (0 to 100) of the requests are answered within `latency_s`."""

    latency_s: float
    percentile: float = 99.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """A window of time, opened and closed by cron expressions, with bounds that hold in place of the policy's."""

    start: str
    """Five fields, for example `0 8 * * mon-fri`."""
    end: str
    min_replicas: int | None = None
    """None: the policy's."""
    max_replicas: int | None = None
    zone: tzinfo | None = None
    """Whose clock the expressions mean; None: UTC."""


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """What the operator wants of one model."""

    min_replicas: int
    max_replicas: int
    target_qps: float | None
    """Requests per second a ready replica; None: QPS does not decide."""
    mode: Literal["honour", "learn"]
    metrics: tuple[MetricTarget, ...]
    behavior: Behavior
    idle_s: float
    """With min_replicas 0: seconds without a request or one in flight after which the count goes to zero; sooner where
    past silences or a timer say that waiting helps nobody."""
    concurrency_limit: int = 0
    """Requests in flight to one replica at most; 0 is unbounded."""
    objective: Objective | None = None
    """Instead of a target, or beside it: how long a request may take."""
    max_boost: float = 1.0
    """How many times its slice's compute a replica may have while others start; 1: slices do not grow."""
    fixed_replicas: int | None = None
    """Set by hand: the recommendation is this count, the signals are still told."""
    external: tuple[ExternalTarget, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    """Windows with bounds of their own."""
    advisory: bool = False
    """Recommend, but nobody acts on it: each recommendation starts from what really runs."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Replicas of the model at this moment."""

    ready: int
    starting: int
    """Placed and not ready yet, those in back-off included: capacity to come."""
    draining: int
    expected_ready_s: float | None = None
    """How long a start is expected to take; None: it is learned from the counts."""
    boost: float = 1.0
    """How many times its slice's compute each ready replica has now."""


@dataclass(frozen=True, slots=True)
class External:
    """What is known of an external metric now."""

    name: str
    value: float | None
    """None: missing or too old."""
    note: str = ""
    """Why it is missing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured since the last sample. None means missing, never zero."""

    dt: float
    """Seconds the gateway's figures cover."""
    arrivals: int | None
    """Requests that arrived in dt; None when no gateway worker reported."""
    completions: int | None = None
    in_flight: float | None = None
    """Mean over dt, all replicas together."""
    queued: float | None = None
    """Mean over dt."""
    queued_now: int = 0
    cpu: tuple[float, ...] = ()
    """Percent per ready replica that could be measured."""
    memory: tuple[float, ...] = ()
    device_memory: tuple[float, ...] = ()
    wake: bool = False
    """A request waits and no endpoint is there."""
    external: tuple[External, ...] = ()


class SignalReading(NamedTuple):
    """One signal's say."""

    name: str
    """qps, capacity, concurrency, cpu, memory, deviceMemory, queue or an external metric's."""
    value: float | None
    """Measured, over all replicas (rates, concurrency) or the mean of them (percentages); None when missing."""
    target: float
    """A replica."""
    replicas: int | None
    """Wanted by this signal alone, None when missing."""
    words: Words = ""
    up: float = 0.0
    """Fractional replicas that it is certain enough are needed to add some."""
    down: float = 0.0
    """Those that must stay when some are removed; infinite with `replicas` None: nothing was measured where something
    should have been."""
    is_exact: bool = False
    """It carries its own margin, so no tolerance applies."""

    @property
    def note(self) -> str:
        """What was seen, in words."""
        return text(self.words)


class Recommendation(NamedTuple):
    """How many replicas a model should have (starting ones counted), and why."""

    replicas: int
    previous: int
    """Ready and starting at the time."""
    signal: str
    """What decided: a signal, or min, max, schedule, fixed, idle, timer, wake, hold, stabilization, behavior or
    tolerance."""
    readings: tuple[SignalReading, ...] = ()
    words: tuple[Words, ...] = ()
    """Of the reasons, in the order applied."""
    boost: float = 1.0
    """How many times its slice's compute each ready replica should have (`ScalingPolicy.max_boost` at most)."""
    capacity: float | None = None
    """Requests per second that a replica is known to do; None: not known yet."""
    advisory: bool = False
    """To be shown and recorded, not carried out."""
    window: str = ""
    """The schedules' windows that are open, or about to be, in words."""
    expected: float | None = None
    """Requests per second that are expected when a replica asked for now would be ready; None: not known yet."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """In words, in the order applied."""
        return tuple(map(text, self.words))
