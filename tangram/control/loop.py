"""The closed loop: what is observed and measured goes in, the planner decides, its decision is recorded and done.

A *turn* is synchronous from observation to record, so that no two turns ever interleave:

    observe replicas -> demand and recommendations -> plan -> record (one transaction) -> publish to the gateway

What is on record is then made true by `_reconcile`, which starts and stops processes in tasks of their own. It acts on
the recorded phases alone, so a controller that was killed between record and act does the rest when it is back.

A turn runs once a second, and at once when something happens: a replica becomes ready or ends, a drain is over, a
request waits for a model without replicas, a spec changes.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from autoscaler.policy import recommend
from autoscaler.types import Sample
from gateway.wire import ModelEntry
from packer.inventory import NoFit
from packer.verify import verify
from tangram.control import present, rollouts
from tangram.control.ejections import Ejections
from tangram.control.measure import measure_model, supply_of
from tangram.control.state import ControllerState, ModelState, free_slots
from tangram.control.store import Store
from tangram.control.views import EventView
from tangram.core import convert, planner, plans, rollout
from tangram.core.decision import decide
from tangram.core.replica import Change, Observation, Phase, Replica, observe
from tangram.node.backend import Backend, InstancePhase, InstanceStatus, StartError
from tangram.node.launch import order

log = logging.getLogger("tangram.loop")

TICK_S: Final = 1.0
#: Scaling history is recorded this often.
HISTORY_S: Final = 10.0
RETAIN_S: Final = 600.0
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
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Task[None]] = {}
        self._start_errors: dict[str, str] = {}
        self._over_limit: set[str] = set()
        self._ejections = Ejections()
        self._unrecorded: set[str] = set()
        """Replicas that are not on record as they are: new, changed or gone."""
        self._next_history = 0.0
        self._next_retain = 0.0
        self._next_tidy = 0.0
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
        self._unrecorded |= {r.name for r in stopping}
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
        for task in self._stops.values():
            task.cancel()
        await asyncio.gather(*self._starts.values(), *self._stops.values(), return_exceptions=True)

    # --- one turn ---

    def turn(self, now: float, monotonic: float, *, measure: bool) -> None:
        """Observe, recommend, plan, record, publish, reconcile. `now` is Unix time, `monotonic` is for rates."""
        state = self.state
        state.statuses = self._backend.statuses()
        events = self._observe(now) + self._ejections.events(state, now)
        self._recommend(monotonic, measure=measure)
        if not self._stopping:
            rollouts.advance(state, self._store, now)
            outcome = self._plan(now)
            planned = {
                r.name: r for r in self._numbered(planner.apply(list(state.replicas.values()), outcome.actions, now))
            }
            self._unrecorded |= {n for n, r in planned.items() if state.replicas.get(n) != r}
            state.replicas = planned
        else:
            outcome = plans.Plan()
        recorded = True
        try:
            self._record(outcome, events, now)
        except sqlite3.Error as error:
            # The gateway is told what is so all the same, but nothing is done that is not on record.
            log.error("the turn cannot be recorded: %s; nothing is started until it can", error)
            recorded = False
        self._publish(outcome, now)
        if recorded or self._stopping:
            self._reconcile()
        if self._stopping and not state.replicas:
            self.emptied.set()
        if measure:
            self._keep_history(now)

    def _observe(self, now: float) -> list[EventView]:
        events: list[EventView] = []
        for replica in list(self.state.replicas.values()):
            seen = self._seen(replica)
            if seen is None:
                continue
            after, change = observe(replica, seen, now)
            if change is not None:
                events.append(_event(replica, change, now))
                log.info("%s: %s", replica.name, change.message)
            if after is None:
                self._unrecorded.add(replica.name)
                del self.state.replicas[replica.name]
                self._backend.forget(replica.name)
                self._ports.release(replica.port)
            elif after != replica:
                self._unrecorded.add(replica.name)
                self.state.replicas[replica.name] = after
                model = self.state.models.get(replica.model)
                if model and replica.phase is Phase.STARTING and after.phase is Phase.READY and after.started_at:
                    model.start_times_s.append(max(0.0, now - after.started_at))
        return events

    def _seen(self, replica: Replica) -> Observation | None:
        """What is to be made of the replica's process; None where nothing is to be concluded yet."""
        if replica.name in self._starts:
            return None
        if (error := self._start_errors.pop(replica.name, None)) is not None:
            return Observation(alive=False, started=False, message=error)
        status = self.state.statuses.get(replica.name)
        if replica.phase is Phase.STARTING and replica.pid is None:
            return None if status is None or status.phase is InstancePhase.EXITED else _observation(status)
        if status is None:
            if replica.phase is Phase.CRASHED:
                return None
            return Observation(alive=False, message="its process was not found again")
        if status.phase is InstancePhase.EXITED and replica.name in self._stops:
            return None
        return _observation(status)

    def _recommend(self, monotonic: float, *, measure: bool) -> None:
        demand = self.state.demand
        if measure:
            demand.begin(monotonic)
        for entry in self.state.models.values():
            if not measure and not entry.woken and not entry.changed and entry.recommendation is not None:
                continue
            seen = measure_model(self.state, entry, monotonic) if measure else Sample(0.0, 0, wake=entry.woken)
            supply = supply_of(self.state, entry)
            policy = convert.scaling_policy(entry.model)
            entry.recommendation, entry.policy_state = recommend(policy, supply, seen, entry.policy_state, monotonic)
            entry.woken = entry.changed = False

    def _plan(self, now: float) -> plans.Plan:
        state = self.state
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
            mix=convert.expected_mix(
                {n: (m.model, m.recommendation.replicas) for n, m in state.models.items() if m.recommendation}
            ),
            tidy=now >= self._next_tidy,
        )
        if observed.tidy:
            self._next_tidy = now + TIDY_S
        desired = {n: want for n, m in state.models.items() if (want := rollouts.desired(m)) is not None}
        outcome = planner.plan(observed, desired, planner.ledger_of(state.inventory, replicas), now)
        state.moves.extend(now for a in outcome.actions if isinstance(a, plans.Start) and a.moves)
        for name, attempts in outcome.attempts.items():
            state.models[name].attempts = attempts
        return outcome

    def _numbered(self, replicas: Sequence[Replica]) -> list[Replica]:
        """New replicas get their port and slot, and the count of names goes on."""
        slots = iter(free_slots(r for r in replicas if r.port))
        numbered: list[Replica] = []
        for replica in replicas:
            if not replica.port:
                replica = replace(replica, port=self._ports.allocate(), slot=next(slots))
                number = int(replica.name.rpartition("-")[2])
                self.state.ordinals[replica.model] = max(self.state.ordinals.get(replica.model, 1), number + 1)
            numbered.append(replica)
        return numbered

    # --- record ---

    def _record(self, outcome: plans.Plan, events: list[EventView], now: float) -> None:
        """Record the turn, and what an earlier turn could not. Raises sqlite3.Error."""
        state = self.state
        decisions = []
        marks = {}
        for name, entry in state.models.items():
            if entry.recommendation is None:
                continue
            live = sum(r.live for r in state.of_model(name))
            decision = decide(now, name, entry.recommendation, outcome, live)
            entry.latest = decision
            mark = (decision.recommendation.replicas, planner_refusals(outcome, name))
            if decision.eventful or (mark != entry.recorded and (mark[1] or (entry.recorded and entry.recorded[1]))):
                decisions.append(present.decision_view(decision))
                marks[name] = mark
        events += self._memory_events(now)
        if not (self._unrecorded or events or decisions):
            return
        changed = [state.replicas[n] for n in self._unrecorded if n in state.replicas]
        with self._store.transaction():
            self._store.put_replicas(changed)
            self._store.delete_replicas(self._unrecorded - state.replicas.keys())
            for model in {r.model for r in changed} & state.ordinals.keys():
                self._store.put_ordinal(model, state.ordinals[model])
            for view in decisions:
                self._store.add_decision(view)
            for event in events:
                self._store.add_event(event)
        self._unrecorded.clear()
        for name, mark in marks.items():
            state.models[name].recorded = mark
        for view in decisions:
            for action in view.actions:
                log.info("%s", action)

    def _memory_events(self, now: float) -> list[EventView]:
        """A replica that grows past its slice's limit is told once each time it does."""
        events = []
        over = set()
        for replica in self.state.replicas.values():
            status = self.state.statuses.get(replica.name)
            limit = replica.placement.request.limit_mib
            if status is None or status.memory_mib is None or status.memory_mib <= limit:
                continue
            over.add(replica.name)
            if replica.name not in self._over_limit:
                text = f"uses {status.memory_mib:.0f} MiB, more than the limit of {limit} MiB of its slice"
                log.warning("%s %s", replica.name, text)
                events.append(_event(replica, Change("OverMemoryLimit", text), now))
        self._over_limit = over
        return events

    def _keep_history(self, now: float) -> None:
        if now >= self._next_history:
            self._next_history = now + HISTORY_S
            monotonic = asyncio.get_running_loop().time()
            rows = [
                (
                    now,
                    n,
                    m.recommendation.replicas,
                    self.state.count(n, Phase.READY),
                    self.state.demand.qps(n, monotonic),
                )
                for n, m in self.state.models.items()
                if m.recommendation
            ]
            with self._store.transaction():
                self._store.add_history(rows)
        if now >= self._next_retain:
            self._next_retain = now + RETAIN_S
            self._store.retain(now)

    # --- publish ---

    def _publish(self, outcome: plans.Plan, now: float) -> None:
        state = self.state
        problems = verify(planner.ledger_of(state.inventory, list(state.replicas.values())).inventory())
        if problems and tuple(problems) != state.oversold:
            log.error("the ledger is wrong: %s", "; ".join(problems))
        state.oversold = tuple(problems)
        self._gateway.publish(
            {
                name: convert.model_entry(
                    entry.model,
                    state.of_model(name),
                    expected_ready_s=self._expected_ready(entry, now),
                    unavailable=self._unavailable(entry, outcome, now),
                    canary_percent=rollout.canary_percent(entry.rollout, entry.model.spec.rollout),
                )
                for name, entry in state.models.items()
            }
        )

    def _expected_ready(self, entry: ModelState, now: float) -> float | None:
        whole = entry.expected_start_s
        starting = [r for r in self.state.of_model(entry.model.name) if r.phase is Phase.STARTING]
        if whole is None or not starting:
            return None
        return max(0.1, min(whole - (now - (r.started_at or r.since)) for r in starting))

    def _unavailable(self, entry: ModelState, outcome: plans.Plan, now: float) -> str | None:
        name = entry.model.name
        if self.state.count(name, Phase.READY, Phase.STARTING):
            return None
        refusals: Sequence[NoFit] = outcome.refusals.get(name, ())
        if refusals:
            return f"no room: {refusals[0]}"
        if waiting := outcome.waiting.get(name):
            return waiting
        crashed = [r for r in self.state.of_model(name) if r.phase is Phase.CRASHED]
        if crashed and all((r.retry_at or now) - now > TICK_S for r in crashed):
            return f"replicas crash: {crashed[0].message}"
        return None

    # --- act ---

    def _reconcile(self) -> None:
        """Make what is on record true."""
        statuses = self._backend.statuses()
        for replica in self.state.replicas.values():
            status = statuses.get(replica.name)
            alive = status is not None and status.phase is not InstancePhase.EXITED
            if replica.phase is Phase.STARTING and replica.pid is None and not alive:
                if replica.name not in self._starts:
                    self._spawn(self._starts, replica.name, self._start(replica))
            elif replica.phase is Phase.STOPPING and alive and replica.name not in self._stops:
                self._spawn(self._stops, replica.name, self._stop(replica))

    def _spawn(self, tasks: dict[str, asyncio.Task[None]], name: str, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        tasks[name] = task

        def done(_: asyncio.Task[None]) -> None:
            tasks.pop(name, None)
            self.nudge()

        task.add_done_callback(done)

    async def _start(self, replica: Replica) -> None:
        entry = self.state.models.get(replica.model)
        device = next((d for d in self.state.inventory.devices if d.id == replica.placement.device), None)
        if entry is None or device is None:
            self._start_errors[replica.name] = "its model or device is gone"
            return
        try:
            model = entry.document(replica.revision)
            status = await self._backend.start(order(model, replica.name, replica.port, device))
        except StartError as error:
            self._start_errors[replica.name] = str(error)
            return
        current = self.state.replicas.get(replica.name)
        if current is not None:
            known = replace(current, pid=status.pid, start_ticks=status.start_ticks, started_at=status.started_at)
            self.state.replicas[replica.name] = known
            try:
                self._store.put_replicas([known])
            except sqlite3.Error as error:
                log.error("the process of %s cannot be recorded: %s", replica.name, error)
                self._unrecorded.add(replica.name)

    async def _stop(self, replica: Replica) -> None:
        entry = self.state.models.get(replica.model)
        grace = entry.model.spec.runtime.termination_grace_period_seconds if entry else 10.0
        await self._backend.stop(replica.name, grace)


def planner_refusals(outcome: plans.Plan, model: str) -> tuple[str, ...]:
    """What stands in the way of a model, in words that do not change while it stands."""
    standing = tuple(dict.fromkeys(str(r) for r in outcome.refusals.get(model, ())))
    return (*standing, *(["waiting"] if model in outcome.waiting else []))


def _observation(status: InstanceStatus) -> Observation:
    return Observation(
        alive=status.phase is not InstancePhase.EXITED,
        ready=status.phase is InstancePhase.READY,
        pid=status.pid,
        start_ticks=status.start_ticks,
        started_at=status.started_at,
        exit_code=status.exit_code,
        message=status.message,
    )


def _event(replica: Replica, change: Change, now: float) -> EventView:
    return EventView(at=now, model=replica.model, replica=replica.name, reason=change.reason, message=change.message)
