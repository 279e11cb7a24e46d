"""What gateway workers eject, told to operators: an event when a replica is first left out, and one when it is back."""

from __future__ import annotations

import logging

from tangram.control.state import ControllerState
from tangram.control.views import EventView
from tangram.core.replica import Phase

log = logging.getLogger("tangram.ejections")


class Ejections:
    """Replicas that are known to be ejected."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def events(self, state: ControllerState, now: float) -> list[EventView]:
        """What has changed since the last call."""
        events = []
        ejected: set[str] = set()
        for name in state.models:
            for replica, why in state.demand.ejections(name).items():
                ejected.add(replica)
                if replica not in self._known and replica in state.replicas:
                    text = f"the gateway sends it nothing new: {why}"
                    log.warning("%s: %s", replica, text)
                    events.append(EventView(at=now, model=name, replica=replica, reason="Ejected", message=text))
        for replica in sorted(self._known - ejected):
            there = state.replicas.get(replica)
            # One that left the gateway's table is not ejected either, and gets nothing all the same.
            if there is not None and there.phase is Phase.READY:
                text = "the gateway sends it requests again"
                log.info("%s: %s", replica, text)
                events.append(EventView(at=now, model=there.model, replica=replica, reason="Readmitted", message=text))
        self._known = ejected
        return events
