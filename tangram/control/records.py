"""What a turn of the loop leaves on record: replicas, decisions, events, and a history of counts."""

from __future__ import annotations

import logging
from typing import Final

from tangram.control import present
from tangram.control.state import ControllerState
from tangram.control.store import Store
from tangram.control.views import EventView
from tangram.core import convert, plans
from tangram.core.decision import decide
from tangram.core.replica import Change, Phase, Replica

log = logging.getLogger("tangram.loop")

#: Scaling history is recorded this often.
HISTORY_S: Final = 10.0
RETAIN_S: Final = 600.0


class Records:
    """Knows what of the replicas is not on record yet."""

    def __init__(self, state: ControllerState, store: Store) -> None:
        self._state = state
        self._store = store
        self.unrecorded: set[str] = set()
        """Replicas that are not on record as they are: new, changed or gone."""
        self._over_limit: set[str] = set()
        self._next_history = 0.0
        self._next_retain = 0.0

    def turn(self, outcome: plans.Plan, events: list[EventView], now: float) -> None:
        """Record the turn, and what an earlier turn could not. Raises sqlite3.Error."""
        state = self._state
        decisions = []
        marks = {}
        for name, entry in state.models.items():
            if entry.recommendation is None:
                continue
            live = sum(r.live for r in state.of_model(name))
            decision = decide(now, name, entry.recommendation, entry.wanted or 0, outcome, live)
            entry.latest = decision
            mark = (decision.recommendation.replicas, planner_refusals(outcome, name))
            told = mark[1] or (entry.recorded and entry.recorded[1]) or decision.recommendation.advisory
            if decision.eventful or (mark != entry.recorded and told):
                decisions.append(present.decision_view(decision))
                marks[name] = mark
        events = events + self._memory_events(now)
        if not (self.unrecorded or events or decisions):
            return
        changed = [state.replicas[n] for n in self.unrecorded if n in state.replicas]
        with self._store.transaction():
            self._store.put_replicas(changed)
            self._store.delete_replicas(self.unrecorded - state.replicas.keys())
            for model in {r.model for r in changed} & state.ordinals.keys():
                self._store.put_ordinal(model, state.ordinals[model])
            for view in decisions:
                self._store.add_decision(view)
            for event in events:
                self._store.add_event(event)
        self.unrecorded.clear()
        for name, mark in marks.items():
            state.models[name].recorded = mark
        for view in decisions:
            for action in view.actions:
                log.info("%s", action)

    def _memory_events(self, now: float) -> list[EventView]:
        """A replica that grows past its slice's limit is told once each time it does."""
        events = []
        over = set()
        for replica in self._state.replicas.values():
            status = self._state.statuses.get(replica.name)
            if status is None or status.memory_mib is None:
                continue
            limit = convert.limit_mib(replica.placement, self._state.devices)
            if status.memory_mib <= limit:
                continue
            over.add(replica.name)
            if replica.name not in self._over_limit:
                text = f"uses {status.memory_mib:.0f} MiB, more than the limit of {limit} MiB of its slice"
                log.warning("%s %s", replica.name, text)
                events.append(event_of(replica, Change("OverMemoryLimit", text), now))
        self._over_limit = over
        return events

    def keep_history(self, now: float, monotonic: float) -> None:
        """Add to the history of counts where it is time, and drop what is old."""
        if now >= self._next_history:
            self._next_history = now + HISTORY_S
            state = self._state
            rows = [
                (now, n, m.wanted, state.count(n, Phase.READY), state.demand.qps(n, monotonic))
                for n, m in state.models.items()
                if m.wanted is not None
            ]
            with self._store.transaction():
                self._store.add_history(rows)
        if now >= self._next_retain:
            self._next_retain = now + RETAIN_S
            self._store.retain(now)


def planner_refusals(outcome: plans.Plan, model: str) -> tuple[str, ...]:
    """What stands in the way of a model, in words that do not change while it stands."""
    standing = tuple(dict.fromkeys(str(r) for r in outcome.refusals.get(model, ())))
    share = outcome.shortage(model)
    shared = [f"{share.granted} of {share.wanted}"] if share else []
    return (*standing, *shared, *(["waiting"] if model in outcome.waiting else []))


def event_of(replica: Replica, change: Change, now: float) -> EventView:
    """What happened to a replica, for its events."""
    return EventView(at=now, model=replica.model, replica=replica.name, reason=change.reason, message=change.message)
