"""The closed loop: what is observed and measured goes in, the planner decides, its decision is recorded and done.

A *turn* is synchronous from observation to record, so that no two turns ever interleave:

    observe replicas -> demand and recommendations -> plan -> record (one transaction) -> publish to the gateway

What is on record (records.py) is then made true by instances.py, and the gateway is told what publish.py makes of it.

A turn runs once a second, and at once when something happens: a replica becomes ready or ends, a drain is over, a
request waits for a model without replicas, a spec changes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

from autoscaler.policy import recommend
from autoscaler.quota import SUFFER_S
from autoscaler.types import Sample
from gateway.wire import ModelEntry
from packer.verify import verify
from tangram.control import publish, rollouts
from tangram.control.ejections import Ejections
from tangram.control.instances import Instances
from tangram.control.measure import claim_of, external, measure_model, most_boost, supply_of
from tangram.control.memories import Memories
from tangram.control.records import Records, event_of
from tangram.control.state import ControllerState, ModelState, Replicas, free_slots
from tangram.control.store import Store
from tangram.control.views import EventView
from tangram.core import convert, planner, plans
from tangram.core.replica import Phase, Replica, observe
from tangram.node.backend import Backend

log = logging.getLogger("tangram.loop")

TICK_S: Final = 1.0
#: Moves that leave more useful room are looked for this often.
TIDY_S: Final = 60.0
HOUR_S: Final = 3600.0


class Publisher(Protocol):
    """The gateway's side, as the loop needs it."""

    def publish(self, table: Mapping[str, ModelEntry]) -> None:
        """Send what changed."""

    def drained(self, replica: str) -> bool:
        """Whether nothing is in flight to a draining replica."""


class Ports(Protocol):
    """Ports for Instances on this machine."""

    def allocate(self) -> int:
        """A port that nothing listens on."""

    def release(self, port: int) -> None:
        """Give a port back."""


class ControlLoop:
    """Runs turns over a ControllerState until it is closed."""

    def __init__(
        self,
        state: ControllerState,
        store: Store,
        backend: Backend,
        gateway: Publisher,
        ports: Ports,
        happened: asyncio.Event,
    ) -> None:
        """Whoever learns of something that the loop should look at sets `happened`."""
        self.state = state
        self._store = store
        self._backend = backend
        self._gateway = gateway
        self._ports = ports
        self._happened = happened
        self._records = Records(state, store)
        self._memories = Memories(state, store)
        self._instances = Instances(state, store, backend, self._records.unrecorded, self.nudge)
        self._ejections = Ejections()
        self._unadvised: set[str] = set()
        """Models that the autoscaler failed on when it was last asked."""
        self._next_tidy = 0.0
        self._planned_at = 0.0
        self._next_tick = 0.0
        self._stopping = False
        self.emptied = asyncio.Event()
        """Set when no replica is left after `begin_stop`."""

    def nudge(self) -> None:
        """Something happened: run a turn at once."""
        self._happened.set()

    def begin_stop(self, now: float) -> None:
        """From now on start nothing, and end every replica."""
        self._stopping = True
        replicas = self.state.replicas
        stopping = [
            replace(r, phase=Phase.STOPPING, since=now, message="everything stops")
            for r in replicas.values()
            if r.phase is not Phase.STOPPING
        ]
        replicas.update({r.name: r for r in stopping})
        self._records.unrecorded |= {r.name for r in stopping}
        self.nudge()

    async def run(self) -> None:
        """Turns until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            scheduled = loop.time() >= self._next_tick
            if scheduled:
                self._next_tick = max(self._next_tick + TICK_S, loop.time() + TICK_S / 2)
            try:
                self.turn(time.time(), loop.time(), measure=scheduled)
            except Exception:
                log.exception("a turn of the loop failed; the next one tries again")
            try:
                async with asyncio.timeout(max(0.0, self._next_tick - loop.time())):
                    await self._happened.wait()
            except TimeoutError:
                pass
            self._happened.clear()

    async def close(self) -> None:
        """Wait for starts under way to be recorded, and leave the processes alone."""
        await self._instances.close()
        self._memories.keep_all(time.time(), asyncio.get_running_loop().time())

    # --- one turn ---

    def turn(self, now: float, monotonic: float, *, measure: bool) -> None:
        """Observe, recommend, plan, record, publish, reconcile. `now` is Unix time, `monotonic` is for rates."""
        state = self.state
        state.statuses = self._backend.statuses()
        events = self._observe(now) + self._ejections.events(state, now)
        self._recommend(now, monotonic, measure=measure)
        if not self._stopping:
            rollouts.advance(state, self._store, now)
            outcome = self._plan(now, monotonic)
            planned = {
                r.name: r for r in self._numbered(plans.apply(list(state.replicas.values()), outcome.actions, now))
            }
            self._records.unrecorded |= {n for n, r in planned.items() if state.replicas.get(n) != r}
            state.replicas = Replicas(planned)
        else:
            outcome = plans.Plan()
        recorded = True
        try:
            self._records.turn(outcome, events, now)
        except sqlite3.Error as error:
            # The gateway is told what is so all the same, but nothing is done that is not on record.
            log.error("the turn cannot be recorded: %s; nothing is started until it can", error)
            recorded = False
        self._publish(outcome, now)
        if recorded or self._stopping:
            self._instances.reconcile()
        if self._stopping and not state.replicas:
            self.emptied.set()
        if measure:
            self._records.keep_history(now, monotonic)
            self._memories.keep_due(now, monotonic)

    def _observe(self, now: float) -> list[EventView]:
        events: list[EventView] = []
        for replica in list(self.state.replicas.values()):
            seen = self._instances.seen(replica)
            if seen is None:
                continue
            after, change = observe(replica, seen, now)
            if change is not None:
                events.append(event_of(replica, change, now))
                log.info("%s: %s", replica.name, change.message)
            if after is None:
                self._records.unrecorded.add(replica.name)
                del self.state.replicas[replica.name]
                self._backend.forget(replica.name)
                self._ports.release(replica.port)
            elif after != replica:
                self._records.unrecorded.add(replica.name)
                self.state.replicas[replica.name] = after
                model = self.state.models.get(replica.model)
                if model and replica.phase is Phase.STARTING and after.phase is Phase.READY and after.started_at:
                    model.start_times_s.append(max(0.0, now - after.started_at))
        return events

    def _recommend(self, now: float, monotonic: float, *, measure: bool) -> None:
        demand, at = self.state.demand, datetime.fromtimestamp(now, UTC)
        if measure:
            demand.begin(monotonic)
        for entry in self.state.models.values():
            if not measure and not entry.woken and not entry.changed and entry.recommendation is not None:
                continue
            try:
                self._advise(entry, monotonic, at, measure=measure)
            except Exception:
                # The others go on. Without any advice, though, the model would be taken for deleted.
                if entry.recommendation is None:
                    raise
                if entry.model.name not in self._unadvised:
                    log.exception("%s keeps its count: no recommendation can be made", entry.model.name)
                self._unadvised.add(entry.model.name)
            else:
                self._unadvised.discard(entry.model.name)
            entry.woken = entry.changed = False

    def _advise(self, entry: ModelState, monotonic: float, at: datetime, *, measure: bool) -> None:
        if measure:
            seen = measure_model(self.state, entry, monotonic)
        else:
            known = external(self.state, entry.model, monotonic)
            seen = Sample(0.0, 0, wake=entry.woken, external=known)
        supply = supply_of(self.state, entry)
        growth = most_boost(self.state, entry.model)
        policy = entry.policy(advise=self.state.advise, most_boost=growth)
        advice, entry.policy_state = recommend(policy, supply, seen, entry.policy_state, monotonic, at)
        entry.take(advice, supply.ready + supply.starting)

    def _plan(self, now: float, monotonic: float) -> plans.Plan:
        state = self.state
        self._suffer(now)
        replicas = tuple(sorted(state.replicas.values(), key=lambda r: (r.created_at, r.name)))
        drained = frozenset(r.name for r in replicas if r.phase is Phase.DRAINING and self._gateway.drained(r.name))
        while state.moves and now - state.moves[0] > HOUR_S:
            state.moves.popleft()
        observed = plans.Observed(
            replicas=replicas,
            drained=drained,
            attempts={n: m.attempts for n, m in state.models.items()},
            next_ordinal=state.ordinals,
            moves_lately=len(state.moves),
            mix=convert.expected_mix({n: (m.model, m.wanted) for n, m in state.models.items() if m.wanted is not None}),
            division=state.division,
            tidy=now >= self._next_tidy,
        )
        if observed.tidy:
            self._next_tidy = now + TIDY_S
        desired = {
            n: want
            for n, m in state.models.items()
            if (want := rollouts.desired(m, claim_of(state, m, now, monotonic))) is not None
        }
        outcome = planner.plan(observed, desired, planner.ledger_of(state.inventory, replicas), now)
        state.moves.extend(now for a in outcome.actions if isinstance(a, plans.Start) and a.moves)
        for name, attempts in outcome.attempts.items():
            state.models[name].attempts = attempts
        state.division = outcome.division
        return outcome

    def _suffer(self, now: float) -> None:
        """What each model was refused since the last plan counts for it in this one."""
        fading = -math.expm1(-max(0.0, now - self._planned_at) / SUFFER_S)
        shares = self.state.division.shares if self.state.division is not None else {}
        for name, entry in self.state.models.items():
            share = shares.get(name)
            refused = 1.0 - share.granted / share.wanted if share is not None and share.wanted else 0.0
            entry.suffered += (refused - entry.suffered) * fading
        self._planned_at = now

    def _numbered(self, replicas: Sequence[Replica]) -> list[Replica]:
        """New replicas get their port and slot, and the count of names goes on."""
        slots = free_slots(r.slot for r in replicas if r.port)
        numbered: list[Replica] = []
        for replica in replicas:
            if not replica.port:
                replica = replace(replica, port=self._ports.allocate(), slot=next(slots))
                number = int(replica.name.rpartition("-")[2])
                self.state.ordinals[replica.model] = max(self.state.ordinals.get(replica.model, 1), number + 1)
            numbered.append(replica)
        return numbered

    def _publish(self, outcome: plans.Plan, now: float) -> None:
        state = self.state
        problems = verify(planner.ledger_of(state.inventory, list(state.replicas.values())).inventory())
        if problems and tuple(problems) != state.oversold:
            log.error("the ledger is wrong: %s", "; ".join(problems))
        state.oversold = tuple(problems)
        self._gateway.publish(publish.table(state, outcome, now))
