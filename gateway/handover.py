"""What the fast path hands to the full path with a request that it has begun.

The full path then reads the same bytes from their first one on. It neither asks the tenant's limits a second time nor
counts the request as another arrival, and goes on where the fast path stopped: in the queue, or with a repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

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
