"""How the gateway treats a model's requests: queue, retries, health, versions, mirrors."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from tangram.spec.base import Doc, Name, NonNegative, Percent, Positive, refuse_twice
from tangram.spec.quantity import MiB


class Queue(Doc):
    """Bounds of a model's waiting room in each gateway worker."""

    max_requests: Annotated[int, Field(ge=0)] = 1000
    max_memory: MiB = Field(default="64Mi")  # type: ignore[assignment]
    max_seconds: Positive = 30.0


class Retry(Doc):
    attempts: Annotated[int, Field(ge=0, le=5)] = 1
    """Repeats after a failure before the first response byte."""
    all_methods: bool = False
    """Also repeat requests that the protocol does not call safe to repeat."""


class Hedge(Doc):
    """A slow request that is safe to repeat is also sent to a second replica; the first answer counts."""

    after_seconds: Positive | None = None
    """How slow; absent: slower than `afterPercentile`."""
    after_percentile: Annotated[float, Field(ge=50, lt=100)] = 95.0
    """Of the times to the first byte that the model's last requests took."""
    max_percent: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Of the recent requests that may be sent twice."""

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        # A stored document names the default too.
        usual = type(self).model_fields["after_percentile"].default
        if self.after_seconds is not None and self.after_percentile != usual:
            raise ValueError(
                f"afterSeconds {self.after_seconds:g} and afterPercentile {self.after_percentile:g} "
                "both say how slow; leave one out"
            )
        return self


class Ejection(Doc):
    """When the gateway sends a replica nothing new, though its readiness probe answers."""

    consecutive_errors: Annotated[int, Field(ge=0, le=1000)] = 5
    """Requests in a row that it refused, broke off, answered with 5xx or not in time; 0: errors do not eject."""
    slow_factor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Multiple of its siblings' typical time to the first byte; 0: slowness does not eject."""
    seconds: Positive = 10.0
    """Of the first ejection; each one in a row lasts twice as long."""
    max_seconds: Positive = 300.0
    max_percent: Percent = 50
    """Of the model's replicas that may be ejected at a time; never the last one."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if 0 < self.slow_factor <= 1:
            raise ValueError(f"slowFactor {self.slow_factor:g} would eject the usual; give more than 1, or 0 for never")
        if self.max_seconds < self.seconds:
            raise ValueError(f"maxSeconds {self.max_seconds:g} is less than seconds {self.seconds:g}; raise it")
        return self


class Health(Doc):
    ejection: Ejection = Ejection()
    slow_start_seconds: NonNegative = 0.0
    """In which the share of a replica that is new, or back, grows from a tenth to the whole."""


class SplitTarget(Doc):
    """Another model that answers some of the requests for this one: a version of it."""

    model: Name
    percent: Annotated[float, Field(gt=0, le=100)]


class Sticky(Doc):
    header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=100)]
    """Requests with the same value of this field go to the same version and replica while that has room."""


class Mirror(Doc):
    """Copies of requests that go to another model, whose answers nobody sees."""

    model: Name
    percent: Annotated[float, Field(gt=0, le=100)] = 100.0


#: What clients may call a model besides its name, such as meta-llama/Llama-3.1-8B; no spaces or control characters.
Alias = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", min_length=1, max_length=200, strict=True)]


class Traffic(Doc):
    aliases: tuple[Alias, ...] = ()
    """Other names that requests may give for the model. An embedded runtime is asked by the model's own name; others
    get requests as they came, so they must know the aliases too."""
    timeout_seconds: Positive = 60.0
    """Until the first byte of an answer, waiting in the queue included; also between bytes of the answer."""
    queue: Queue = Queue()
    concurrency_per_replica: Annotated[int, Field(ge=0)] = 32
    """Requests in flight to one replica at most; 0 is unbounded."""
    retry: Retry = Retry()
    hedge: Hedge | None = None
    """Absent: no request is sent to two replicas at a time."""
    drain_seconds: NonNegative = 30.0
    """How long a draining replica may finish what is in flight."""
    health: Health = Health()
    split: tuple[SplitTarget, ...] = ()
    """Versions and their percents; the model itself answers the rest."""
    sticky: Sticky | None = None
    mirror: Mirror | None = None

    @model_validator(mode="after")
    def _hedged_in_time(self) -> Self:
        after = self.hedge.after_seconds if self.hedge else None
        if after is not None and after >= self.timeout_seconds:
            raise ValueError(
                f"hedge.afterSeconds {after:g} is not less than timeoutSeconds {self.timeout_seconds:g}, "
                "past which nothing is sent; lower it"
            )
        return self

    @model_validator(mode="after")
    def _shares(self) -> Self:
        refuse_twice("split", (target.model for target in self.split))
        if (total := sum(target.percent for target in self.split)) > 100:
            raise ValueError(f"split adds up to {total:g} percent; give at most 100, the rest is the model's own")
        return self
