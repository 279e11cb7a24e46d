"""The routing table: which models there are, which endpoints serve them, and which endpoint the next request takes.

The table takes `wire` messages and only those that are newer, by (term, number), than what it holds. An endpoint that
left the table lingers in its model until nothing is in flight to it, and comes back to life if it is named again.

An endpoint is picked among those that are *usable* (in the table, not draining, weight above 0) and have room: of two
random ones, drawn by weight, the one with fewer requests in flight for its weight. Only where neither has room are the
others looked at, so a pick costs the same with two endpoints as with two hundred.

While a new revision comes in as a canary, chance decides first which side a request takes, by the canary's percent. A
canary without room leaves its share to the others; the canary takes theirs only where none of them is in service.

Passive health: `gateway.health` ejects endpoints that fail again and again or are slow; those take nothing unless all
others are unreachable. Apart from that, an endpoint that refused a connection is *unreachable* for a moment that
doubles with each refusal (0.2 s to 1 s). Nothing was sent to it, so its requests go elsewhere or wait. An endpoint that
broke a connection is *suspect* for as long, and used only where no other has room.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from gateway.health import OutlierDetector, Vitals
from gateway.limits import Limited, Limits
from gateway.splitting import point
from gateway.wire import EndpointEntry, ModelEntry, Removal, Settings, SettingsUpdate, Snapshot, Update, Version

BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 1.0


class Random(Protocol):
    """The part of random.Random that picking needs."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class Endpoint(Limited):
    """A replica, its state in this worker included."""

    __slots__ = (
        "backoff_s",
        "canary",
        "draining",
        "host",
        "id",
        "pool",
        "port",
        "pull",
        "removed",
        "suspended_until",
        "unreachable",
        "vitals",
        "weight",
    )

    def __init__(self, entry: EndpointEntry) -> None:
        super().__init__(entry.slot, entry.concurrency)
        self.id = entry.id
        self.host = entry.host
        self.port = entry.port
        self.weight = entry.weight
        self.draining = entry.draining
        self.removed = False
        self.suspended_until = 0.0
        self.unreachable = False
        """Whether the suspension is for a refused connection."""
        self.backoff_s = 0.0
        self.vitals = Vitals()
        self.canary = entry.canary
        self.pull = float(entry.weight)
        """Weight, less what slow start still holds back."""
        self.pool: object = None
        """Where a shell keeps its connections to this address; not looked at here."""

    def take(self, entry: EndpointEntry) -> None:
        """Follow the table."""
        if (self.host, self.port) != (entry.host, entry.port):
            self.pool = None
            self.succeed()
            self.vitals = Vitals(joined=self.vitals.joined, awaited=self.vitals.awaited, begun=self.vitals.begun)
        self.host, self.port = entry.host, entry.port
        self.pull, self.canary = float(entry.weight), entry.canary
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


@dataclass
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
        self.detector = OutlierDetector(entry.health)
        self._ramping: list[Endpoint] = []
        self.take(entry, now)

    def __repr__(self) -> str:
        return f"<Model {self.entry.name}: {len(self.usable)} usable of {len(self.endpoints)} endpoints>"

    def take(self, entry: ModelEntry, now: float) -> Change:
        """Follow the table."""
        change = Change()
        self.entry, self.received = entry, now
        self.detector.policy = entry.health
        named = set()
        for item in entry.endpoints:
            named.add(item.id)
            endpoint = self.endpoints.get(item.id)
            if endpoint is None:
                self.endpoints[item.id] = endpoint = Endpoint(item)
                endpoint.vitals.joined, endpoint.vitals.ramp_s = now, entry.health.slow_start_s
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
        self.detector.keep_floor(self.usable, now)
        self._ramping = [e for e in self.usable if e.vitals.ramp_s > 0]
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

    def readmitted(self) -> None:
        """An endpoint came back from an ejection."""
        self._ramping = [e for e in self.usable if e.vitals.ramp_s > 0]

    def acquire(self, limits: Limits, now: float, rng: Random, key: str = "") -> Endpoint | None:
        """The endpoint for the next request, with a place in flight taken; None where none has room.

        Requests with the same `key` get the same endpoint as long as it is in service and has room.
        """
        if now >= self.detector.next_review:
            self.detector.review(self.usable, now)
        if self._ramping:
            self._ramp(now)
        percent = self.entry.canary_percent
        if percent is None:
            usable = self.usable
            if len(usable) == 1 and not key:
                # The usual case of a small model, and what the general one comes to.
                only = usable[0]
                vitals = only.vitals
                if only.suspended_until <= now and vitals.ejected is None and not vitals.trial:
                    return only if limits.acquire(only) else None
            return self._among(usable, limits, now, rng, key)
        canaries = [e for e in self.usable if e.canary]
        others = [e for e in self.usable if not e.canary]
        if canaries and 100 * (point(key, self.entry.name) if key else rng.random()) < percent:
            chosen = self._among(canaries, limits, now, rng, key)
            if chosen is not None:
                return chosen
        in_service = any(e.suspended_until <= now and e.vitals.ejected is None for e in others)
        return self._among(others if in_service else self.usable, limits, now, rng, key)

    def acquire_other(self, than: Endpoint, limits: Limits, now: float, rng: Random) -> Endpoint | None:
        """Another endpoint for a request that one has already, of its side of a canary and in order."""
        self.detector.review(self.usable, now)
        others = [e for e in self.usable if e is not than and e.canary == than.canary and _in_order(e, now)]
        return _choose(others, limits, rng)

    def _among(self, usable: list[Endpoint], limits: Limits, now: float, rng: Random, key: str) -> Endpoint | None:
        healthy = [e for e in usable if _in_order(e, now)]
        chosen = _of_key(healthy, limits, key) if key else _choose(healthy, limits, rng)
        if chosen is None and len(healthy) < len(usable):
            suspects = [e for e in usable if e.suspended_until > now and not e.unreachable and e.vitals.ejected is None]
            chosen = _choose(suspects, limits, rng)
            if chosen is None and not suspects and not healthy:
                ejected = [e for e in usable if e.vitals.ejected is not None and not e.unreachable]
                chosen = _choose(ejected, limits, rng)
        return chosen

    def _ramp(self, now: float) -> None:
        for endpoint in self._ramping:
            endpoint.pull = endpoint.weight * endpoint.vitals.ramp(now)
        self._ramping = [e for e in self._ramping if e.pull < e.weight]


def _in_order(endpoint: Endpoint, now: float) -> bool:
    vitals = endpoint.vitals
    trying = vitals.trial and endpoint.in_flight > vitals.begun
    return endpoint.suspended_until <= now and vitals.ejected is None and not trying


def _of_key(endpoints: list[Endpoint], limits: Limits, key: str) -> Endpoint | None:
    """Highest random weight (Thaler and Ravishankar 1998): one endpoint more or less moves only its own keys."""
    ranked = sorted(endpoints, key=lambda e: math.log(max(point(key, e.id), 1e-18)) / e.weight, reverse=True)
    return next((e for e in ranked if limits.acquire(e)), None)


def _choose(endpoints: list[Endpoint], limits: Limits, rng: Random) -> Endpoint | None:
    if len(endpoints) == 1:
        return endpoints[0] if limits.acquire(endpoints[0]) else None
    if len(endpoints) > 2:
        first = _draw(endpoints, rng)
        second = _draw(endpoints, rng, but=first)
        pair = _lighter_first(first, second, limits, rng)
    elif endpoints:
        pair = _lighter_first(endpoints[0], endpoints[1], limits, rng)
    else:
        return None
    for endpoint in pair:
        if limits.acquire(endpoint):
            return endpoint
    if len(endpoints) > 2:
        for endpoint in _by_load([e for e in endpoints if e not in pair and limits.has_room(e)], limits, rng):
            if limits.acquire(endpoint):
                return endpoint
    return None


def _draw(endpoints: list[Endpoint], rng: Random, but: Endpoint | None = None) -> Endpoint:
    total = 0.0 if but is None else -but.pull
    for endpoint in endpoints:
        total += endpoint.pull
    mark = rng.random() * total
    last = endpoints[0]
    for endpoint in endpoints:
        if endpoint is but:
            continue
        last = endpoint
        mark -= endpoint.pull
        if mark < 0:
            break
    return last


def _lighter_first(one: Endpoint, other: Endpoint, limits: Limits, rng: Random) -> tuple[Endpoint, Endpoint]:
    """What `_by_load` gives for two, at a third of its cost."""
    loads = (limits.load(one) + 1) / one.pull, (limits.load(other) + 1) / other.pull
    if loads[0] < loads[1] or (loads[0] == loads[1] and rng.random() < 0.5):
        return one, other
    return other, one


def _by_load(endpoints: Iterable[Endpoint], limits: Limits, rng: Random) -> list[Endpoint]:
    # One more request is counted in, so that of two idle endpoints the heavier one goes first.
    keyed = [((limits.load(e) + 1) / e.pull, rng.random(), e) for e in endpoints]
    keyed.sort(key=lambda item: item[:2])
    return [e for _, _, e in keyed]


class Table:
    """All models, at one version."""

    def __init__(self) -> None:
        self.version: Version = (0, 0)
        self.edition = 0
        """Changes with the version."""
        self.models: dict[str, Model] = {}
        self.settings = Settings()
        self._aliases: dict[str, str] = {}
        self._aliases_of: Version = (0, 0)

    def newer(self, message: Snapshot | Update | Removal | SettingsUpdate) -> bool:
        """Whether the message is to be taken."""
        return (message.term, message.number) > self.version

    @property
    def aliases(self) -> dict[str, str]:
        """Other name -> model. A model's own name is no alias; the first model by name gets an alias of several."""
        if self._aliases_of != self.version:
            self._aliases_of = self.version
            self._aliases = {}
            for name in sorted(self.models):
                for alias in self.models[name].entry.aliases:
                    if alias not in self.models:
                        self._aliases.setdefault(alias, name)
        return self._aliases

    def snapshot(self) -> Snapshot:
        """The table as one message; taking it gives this table again."""
        term, number = self.version
        models = tuple(m.entry for m in self.models.values())
        return Snapshot(term=term, number=number, models=models, settings=self.settings)
