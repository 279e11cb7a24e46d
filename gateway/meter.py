"""What the gateway measures: plain integers and time-integrals, a few nanoseconds each on the path of a request.

A `Level` is a number that goes up and down (requests queued, in flight), with its integral over time: two readings of
the integral, divided by the seconds between them, give the true mean of any window, however short the peaks in it.

`Meter.report` gives what has changed since the last report on a connection, or all of it on the first. A model or
endpoint that was removed is kept until nothing of it is in flight and its last figures have been reported.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from typing import Final

from gateway.wire import LATENCY_BOUNDS, EndpointCounters, ModelCounters, Report, TenantCounters, Version

#: Compiled code would make a tuple's objects anew with each look.
_BOUNDS: Final = list(LATENCY_BOUNDS)
#: What an operator sees as the code of a request whose client left before the answer was complete.
CLIENT_LEFT: Final = 499


class Ending(StrEnum):
    """How a request to a model ended."""

    COMPLETED = "completed"
    """A replica's answer was passed on in full."""
    FAILED = "failed"
    """502 or 504, or an answer cut short."""
    REFUSED = "refused"
    """429 or 503 by the gateway itself."""
    CANCELLED = "cancelled"
    """The client left."""
    REJECTED = "rejected"
    """The request itself was at fault."""


class Level:
    """A number over time, its integral, and for how long it has been above 0."""

    __slots__ = ("_balance", "_busy", "_since", "value")

    def __init__(self, now: float) -> None:
        self.value = 0
        # Times at which it went down, less those at which it went up: the integral, but for what is up now.
        self._balance = 0.0
        self._busy = 0.0
        self._since = now

    def add(self, step: int, now: float) -> None:
        """Change the number."""
        value = self.value
        if not value:
            self._since = now
        self._balance -= step * now
        self.value = value = value + step
        if not value:
            self._busy += now - self._since

    def area(self, now: float) -> float:
        """Integral up to now."""
        return max(0.0, self._balance + self.value * now)

    def busy(self, now: float) -> float:
        """Seconds above 0 up to now."""
        return self._busy + (max(0.0, now - self._since) if self.value else 0.0)


class Total:
    """Requests in flight of a model: those of its endpoints, the forgotten ones included."""

    __slots__ = ("_area", "_endpoints")

    def __init__(self, endpoints: dict[str, EndpointMeter]) -> None:
        self._endpoints = endpoints
        self._area = 0.0

    @property
    def value(self) -> int:
        """The number."""
        return sum(e.flight.value for e in self._endpoints.values())

    def area(self, now: float) -> float:
        """Integral up to now."""
        return self._area + sum(e.flight.area(now) for e in self._endpoints.values())

    def forget(self, id: str, now: float) -> None:
        """Forget an endpoint but for what it adds up to."""
        self._area += self._endpoints.pop(id).flight.area(now)


class EndpointMeter:
    """Figures of one endpoint."""

    __slots__ = ("completions", "ejected", "failures", "flight", "id", "removed", "requests")

    def __init__(self, id: str, now: float) -> None:
        self.id = id
        self.requests = 0
        self.completions = 0
        self.failures = 0
        self.flight = Level(now)
        self.ejected = ""
        """Why it gets nothing new, as of the last report."""
        self.removed = False

    def counters(self, now: float) -> EndpointCounters:
        """As the wire has it."""
        return EndpointCounters(
            id=self.id,
            requests=self.requests,
            completions=self.completions,
            failures=self.failures,
            busy_s=self.flight.busy(now),
            in_flight_s=self.flight.area(now),
            in_flight=self.flight.value,
            ejected=self.ejected,
        )


class ModelMeter:
    """Figures of one model."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.arrivals = 0
        self.completions = 0
        self.errors = 0
        self.refused: dict[str, int] = {}
        self.cancelled = 0
        self.retries = 0
        self.hedges = 0
        self.hedges_won = 0
        self.latency_s = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS) + 1)
        self.codes: dict[int, int] = {}
        self.queue = Level(now)
        self.endpoints: dict[str, EndpointMeter] = {}
        self.flight = Total(self.endpoints)
        self.removed = False
        self._last: ModelCounters | None = None

    def endpoint(self, id: str, now: float) -> EndpointMeter:
        """The meter of an endpoint, made if need be."""
        found = self.endpoints.get(id)
        if found is None:
            found = self.endpoints[id] = EndpointMeter(id, now)
        return found

    def finish(self, ending: Ending, code: int, seconds: float, reason: str = "") -> None:
        """A request has ended; `seconds` since its arrival, `reason` of a refusal."""
        if ending is Ending.COMPLETED:
            self.complete(code, seconds)
            return
        self.codes[code] = self.codes.get(code, 0) + 1
        if ending is Ending.FAILED:
            self.errors += 1
        elif ending is Ending.REFUSED:
            self.refused[reason] = self.refused.get(reason, 0) + 1
        elif ending is Ending.CANCELLED:
            self.cancelled += 1

    def complete(self, code: int, seconds: float) -> None:
        """A request was answered in full."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.completions += 1
        self.latency_s += seconds
        self.buckets[bisect_left(_BOUNDS, seconds)] += 1
        if code >= 500:
            self.errors += 1

    @property
    def idle(self) -> bool:
        """Nothing queued or in flight."""
        return not self.queue.value and not self.flight.value

    def counters(self, now: float) -> ModelCounters:
        """As the wire has it."""
        return ModelCounters(
            name=self.name,
            arrivals=self.arrivals,
            completions=self.completions,
            errors=self.errors,
            refused=sum(self.refused.values()),
            cancelled=self.cancelled,
            latency_s=self.latency_s,
            latency_buckets=tuple(self.buckets),
            queued_s=self.queue.area(now),
            in_flight_s=self.flight.area(now),
            queued=self.queue.value,
            in_flight=self.flight.value,
            endpoints=tuple(e.counters(now) for e in self.endpoints.values()),
        )

    def changed(self, now: float) -> ModelCounters | None:
        """The counters, unless they are what this gave last."""
        counters = self.counters(now)
        if counters == self._last:
            return None
        self._last = counters
        return counters

    def settle(self, now: float) -> None:
        """Forget endpoints that were removed and are done."""
        for id in [e.id for e in self.endpoints.values() if e.removed and not e.flight.value]:
            self.flight.forget(id, now)


class Meter:
    """Figures of all models of one worker."""

    def __init__(self, worker: int, epoch: str, now: float) -> None:
        self.worker = worker
        self.epoch = epoch
        self._began = now
        self.models: dict[str, ModelMeter] = {}
        self.unrouted: dict[int, int] = {}
        """Code -> answers to requests that concern no model of the table."""

    def model(self, name: str, now: float) -> ModelMeter:
        """The meter of a model, made if need be."""
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = ModelMeter(name, now)
        return found

    def unroute(self, code: int) -> None:
        """A request that concerned no model was answered."""
        self.unrouted[code] = self.unrouted.get(code, 0) + 1

    def report(self, applied: Version, now: float, *, full: bool, tenants: tuple[TenantCounters, ...] = ()) -> Report:
        """What has changed since the last report, or all; forgets what was removed and is now reported."""
        models = []
        for meter in list(self.models.values()):
            counters = meter.changed(now)
            if counters is None and full:
                counters = meter.counters(now)
            if counters is not None:
                models.append(counters)
            meter.settle(now)
            if meter.removed and meter.idle:
                del self.models[meter.name]
        return Report(
            worker=self.worker,
            epoch=self.epoch,
            uptime_s=now - self._began,
            applied=applied,
            models=tuple(models),
            tenants=tenants,
        )
