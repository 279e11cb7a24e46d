"""What the fast path wants of the full path, and what it hands over with a request that it has begun.

The full path then reads the same bytes from their first one on. It neither asks the tenant's limits a second time nor
counts the request as another arrival, and goes on where the fast path stopped: in the queue, or with a repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.leases import Served
from gateway.tenants import Pass


@dataclass(slots=True, eq=False)
class Handover:
    """A request that has been let in; whoever takes it over sees to its `permit` and to the end of what was counted."""

    id: str
    arrival: float
    permit: Pass | None
    counted: Served | None = None
    """The model for which its arrival has been counted."""
    entered: float | None = None
    """When it first asked for a place, where it has had its turn and could not be sent."""
    repeats: int = 0
    """How often it has been sent; a repeat goes over a new connection."""
    broke: str = ""
    """The endpoint that broke it off, where it is to be repeated."""


class FullPath(Protocol):
    """The connection as the full path has it."""

    @property
    def at_work(self) -> bool:
        """Whether it handles a request."""

    @property
    def holds(self) -> bool:
        """Whether it wants nothing to be read at present."""

    def begin(self) -> None:
        """Get to work: bytes will come."""

    def data_received(self, data: bytes) -> None:
        """Bytes for its parser."""

    def clean(self) -> bool:
        """Whether its parser holds nothing, although it was not clear where its last request ends."""

    def introduced(self) -> bytes:
        """What is said of the client to endpoints, up to the name of the field for a request's id."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""

    def eof_received(self) -> bool | None:
        """The client has ended its side."""

    def half_close(self) -> None:
        """It has, with a request in progress."""

    def pause_writing(self) -> None:
        """The client has yet to read what was written."""

    def resume_writing(self) -> None:
        """It has."""

    def linger(self) -> None:
        """End the connection such that what was written arrives."""

    def force_close(self) -> None:
        """End it, once what was written has gone."""
