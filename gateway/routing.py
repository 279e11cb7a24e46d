"""The routing table: which models there are, which endpoints serve them, and which endpoint the next request takes.

The table takes `wire` messages and only those that are newer, by (term, number), than what it holds. An endpoint that
left the table lingers in its model until nothing is in flight to it, and comes back to life if it is named again.

An endpoint is picked among those that are *usable* (in the table, not draining, weight above 0) and have room: of two
random ones, drawn by weight, the one with fewer requests in flight for its weight. Only where neither has room are the
others looked at, so a pick costs the same with two endpoints as with two hundred.

Passive health: an endpoint that refused a connection is *unreachable* for a moment that doubles with each refusal
(0.2 s to 1 s). Nothing was sent to it, so its requests go elsewhere or wait. An endpoint that broke a connection is
*suspect* for as long, and used only where no other has room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.limits import Limits
from gateway.wire import EndpointEntry, ModelEntry, Removal, Snapshot, Update, Version

BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 1.0


class Random(Protocol):
    """The part of random.Random that picking needs."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """A replica, its state in this worker included."""

    id: str
    host: str
    port: int
    weight: int
    concurrency: int
    slot: int
    draining: bool
    removed: bool = False
    in_flight: int = 0
    """From this worker; changed by `limits` only."""
    suspended_until: float = 0.0
    unreachable: bool = False
    """Whether the suspension is for a refused connection."""
    backoff_s: float = 0.0

    @classmethod
    def of(cls, entry: EndpointEntry) -> Endpoint:
        """A new endpoint with nothing in flight."""
        return cls(entry.id, entry.host, entry.port, entry.weight, entry.concurrency, entry.slot, entry.draining)

    def take(self, entry: EndpointEntry) -> None:
        """Follow the table."""
        if (self.host, self.port) != (entry.host, entry.port):
            self.succeed()
        self.host, self.port = entry.host, entry.port
        self.weight, self.concurrency, self.slot = entry.weight, entry.concurrency, entry.slot
        self.draining, self.removed = entry.draining, False

    @property
    def leaving(self) -> bool:
        """Gets nothing new; somebody waits for what is in flight to end."""
        return self.draining or self.removed

    def fail(self, now: float, *, unreachable: bool) -> None:
        """Out of rotation for a moment."""
        if self.suspended_until <= now:
            self.backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, 2 * self.backoff_s))
        self.suspended_until = now + self.backoff_s
        self.unreachable = unreachable

    def succeed(self) -> None:
        """It answered."""
        self.suspended_until = self.backoff_s = 0.0
        self.unreachable = False


@dataclass(slots=True)
class Change:
    """What taking an entry did to the endpoints of a model."""

    moved: list[tuple[Endpoint, int]] = field(default_factory=list)
    """Endpoints with another slot than before, and the slot before."""
    leaving: bool = False
    """An endpoint is draining or was removed: whoever drains it waits for word."""


class Model:
    """One model of the table."""

    def __init__(self, entry: ModelEntry, now: float) -> None:
        self.entry = entry
        self.endpoints: dict[str, Endpoint] = {}
        self.usable: list[Endpoint] = []
        self.usable_since: float | None = None
        """Since when there has been a usable endpoint; None while there is none."""
        self.received = now
        """When `entry` came; `entry.expected_ready_s` counts from here."""
        self.take(entry, now)

    def __repr__(self) -> str:
        return f"<Model {self.entry.name}: {len(self.usable)} usable of {len(self.endpoints)} endpoints>"

    def take(self, entry: ModelEntry, now: float) -> Change:
        """Follow the table."""
        change = Change()
        self.entry, self.received = entry, now
        named = set()
        for item in entry.endpoints:
            named.add(item.id)
            endpoint = self.endpoints.get(item.id)
            if endpoint is None:
                self.endpoints[item.id] = endpoint = Endpoint.of(item)
            else:
                if endpoint.slot != item.slot:
                    change.moved.append((endpoint, endpoint.slot))
                endpoint.take(item)
            change.leaving |= endpoint.draining
        for endpoint in [e for e in self.endpoints.values() if e.id not in named]:
            change.leaving = True
            endpoint.removed = True
            self.forget(endpoint)
        self.usable = [e for e in self.endpoints.values() if not e.leaving and e.weight > 0]
        if not self.usable:
            self.usable_since = None
        elif self.usable_since is None:
            self.usable_since = now
        return change

    def retire(self, now: float) -> None:
        """The model left the table; its endpoints linger like removed ones."""
        self.take(self.entry.model_copy(update={"endpoints": ()}), now)

    def forget(self, endpoint: Endpoint) -> None:
        """Drop a removed endpoint once nothing is in flight to it."""
        if endpoint.removed and endpoint.in_flight == 0:
            self.endpoints.pop(endpoint.id, None)

    def ready_in(self, now: float) -> float | None:
        """Seconds until the next replica is expected; None where nothing is known."""
        expected = self.entry.expected_ready_s
        return None if expected is None else max(0.0, self.received + expected - now)

    def next_resumption(self, now: float) -> float | None:
        """When the next suspended endpoint comes back."""
        return min((e.suspended_until for e in self.usable if e.suspended_until > now), default=None)

    def acquire(self, limits: Limits, now: float, rng: Random) -> Endpoint | None:
        """The endpoint for the next request, with a place in flight taken; None where none has room."""
        healthy = [e for e in self.usable if e.suspended_until <= now]
        chosen = _choose(healthy, limits, rng)
        if chosen is None and len(healthy) < len(self.usable):
            suspects = [e for e in self.usable if e.suspended_until > now and not e.unreachable]
            chosen = _choose(suspects, limits, rng)
        return chosen


def _choose(endpoints: list[Endpoint], limits: Limits, rng: Random) -> Endpoint | None:
    if len(endpoints) > 2:
        first = _draw(endpoints, rng)
        second = _draw(endpoints, rng, but=first)
        pair = _by_load((first, second), limits, rng)
    else:
        pair = _by_load(endpoints, limits, rng)
    for endpoint in pair:
        if limits.acquire(endpoint):
            return endpoint
    if len(endpoints) > 2:
        for endpoint in _by_load((e for e in endpoints if e not in pair and limits.has_room(e)), limits, rng):
            if limits.acquire(endpoint):
                return endpoint
    return None


def _draw(endpoints: list[Endpoint], rng: Random, but: Endpoint | None = None) -> Endpoint:
    total = sum(e.weight for e in endpoints if e is not but)
    mark = rng.random() * total
    last = endpoints[0]
    for endpoint in endpoints:
        if endpoint is but:
            continue
        last = endpoint
        mark -= endpoint.weight
        if mark < 0:
            break
    return last


def _by_load(endpoints: Iterable[Endpoint], limits: Limits, rng: Random) -> list[Endpoint]:
    # One more request is counted in, so that of two idle endpoints the heavier one goes first.
    keyed = [((limits.load(e) + 1) / e.weight, rng.random(), e) for e in endpoints]
    keyed.sort(key=lambda item: item[:2])
    return [e for _, _, e in keyed]


class Table:
    """All models, at one version."""

    def __init__(self) -> None:
        self.version: Version = (0, 0)
        self.models: dict[str, Model] = {}

    def newer(self, message: Snapshot | Update | Removal) -> bool:
        """Whether the message is to be taken."""
        return (message.term, message.number) > self.version

    def snapshot(self) -> Snapshot:
        """The table as one message; taking it gives this table again."""
        term, number = self.version
        return Snapshot(term=term, number=number, models=tuple(m.entry for m in self.models.values()))
