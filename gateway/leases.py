"""The nouns of dispatching: a model as served, the lease of a place at an endpoint, how it ended, and what follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway import routing
from gateway.hedging import Hedging
from gateway.limits import Queue
from gateway.meter import EndpointMeter, ModelMeter
from gateway.refusal import Refusal
from gateway.waiting import Room, Ticket


class Outcome(StrEnum):
    """How an endpoint did with a request that was leased to it."""

    ANSWERED = "answered"
    ERROR = "error"
    """Answered in full, with 5xx."""
    UNREACHABLE = "unreachable"
    """It refused the connection; nothing was sent."""
    STALE = "stale"
    """A connection kept from an earlier request turned out to be closed; the endpoint is not to blame."""
    BROKEN = "broken"
    """The connection broke, or what came was not HTTP, before a whole answer was there."""
    TIMED_OUT = "timed_out"
    EXPIRED = "expired"
    """The client's own deadline passed; the endpoint may have been in time by its model's."""
    OVERTAKEN = "overtaken"
    """Another endpoint, asked later, answered first."""
    ABANDONED = "abandoned"
    """Given up for reasons that are not the endpoint's: the client left or sent nonsense."""


#: Outcomes that say nothing of the endpoint.
BLAMELESS: Final = frozenset({Outcome.ABANDONED, Outcome.OVERTAKEN, Outcome.STALE, Outcome.EXPIRED})


@dataclass(eq=False)
class Served:
    """A model with all that this worker keeps of it."""

    route: routing.Model
    meter: ModelMeter
    room: Room = field(default_factory=Room)
    hedging: Hedging = field(default_factory=Hedging)
    told: Queue = field(default_factory=Queue)
    woken: bool = False
    """Whether the controller has been told since the table of this model last changed."""
    removed: bool = False


class Lease:
    """One place in flight at an endpoint; given back exactly once."""

    queue_s: float = 0.0
    """Waited while there was a usable endpoint."""
    start_s: float = 0.0
    """Waited while there was none."""
    open: bool
    sent_at: float | None
    """When the request was sent whole; None before, and once an answer has begun."""
    begun: bool
    """Whether an answer has begun."""

    def __init__(self, served: Served, endpoint: routing.Endpoint, meter: EndpointMeter, since: float) -> None:
        self.served = served
        self.endpoint = endpoint
        self.meter = meter
        self.since = since
        self.open = True
        self.sent_at = None
        self.begun = False


@dataclass
class Effects:
    """What a shell must do after a change."""

    granted: list[tuple[Ticket, Lease]] = field(default_factory=list)
    refused: list[tuple[Ticket, Refusal]] = field(default_factory=list)
    wakes: list[str] = field(default_factory=list)
    """Models for which the controller is to be woken."""
    report: bool = False
    """Somebody waits for a drain: report at once."""

    def merge(self, other: Effects) -> None:
        """Both."""
        self.granted += other.granted
        self.refused += other.refused
        self.wakes += other.wakes
        self.report |= other.report


#: Nothing is to be done, and nobody waits.
NOTHING: Final = Effects()
