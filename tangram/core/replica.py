"""A Replica's life, as pure transitions.

    STARTING -> READY -> DRAINING -> STOPPING -> (gone)
        |  ^      |  ^                   ^
        |  |      v  |                   |
        |  |    UNREADY                  |
        v  |      |                      |
      CRASHED <---'   ------------------>'

STARTING: recorded and placed; its process is started, or about to be. READY: its probe answers. UNREADY: it answered
once and does not now. CRASHED: its process ended by itself and is started again when `retry_at` is reached, on the same
slice. DRAINING: finishes what is in flight and gets nothing new. STOPPING: its process is being ended; the record, and
with it the reservation of the slice, goes when the process is gone.

The planner moves replicas by actions (`plans.apply`); the world moves them by what is observed of their processes
(`observe`). Both return new records and never look at a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from packer.inventory import Placement

#: Seconds before the n-th restart in a row; the last one repeats. The first restart is at once, so that one crash
#: costs no more than the start itself; then as Kubernetes does, doubling to five minutes.
RESTART_DELAYS_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0)

#: A replica that was ready for this long has proven itself: its next crash counts as the first.
PROVEN_AFTER_S: Final = 60.0


class Phase(StrEnum):
    STARTING = "Starting"
    READY = "Ready"
    UNREADY = "Unready"
    CRASHED = "CrashLoopBackOff"
    DRAINING = "Draining"
    STOPPING = "Stopping"


#: Phases in which a replica is part of the count that is wanted; the others are on their way out.
LIVE: Final = frozenset({Phase.STARTING, Phase.READY, Phase.UNREADY, Phase.CRASHED})


@dataclass(frozen=True, slots=True)
class Replica:
    """One Model served by one Instance. Times are Unix seconds."""

    name: str
    model: str
    revision: str
    placement: Placement
    created_at: float
    port: int = 0
    slot: int = 0
    """Column in the memory shared by gateway workers; no two existing replicas share one."""
    phase: Phase = Phase.STARTING
    since: float = 0.0
    """When the phase began."""
    progress_since: float = 0.0
    """Start of the wait that the progress deadline bounds: creation, or the crash that ended readiness."""
    pid: int | None = None
    start_ticks: int | None = None
    started_at: float | None = None
    """Start of the process that runs now or ran last."""
    ready_at: float | None = None
    """When that process was ready first."""
    crashes: int = 0
    """In a row, without having proven itself between them."""
    restarts: int = 0
    """In all."""
    retry_at: float | None = None
    """When a crashed replica is to be started again."""
    loan: int = 0
    """Percent of its device's compute that it has beyond its slice, for the time being."""
    replaces: str = ""
    """The replica whose slice this one takes over in a move; it drains when this one is ready."""
    message: str = ""

    @property
    def live(self) -> bool:
        """Whether it counts towards the replicas that are wanted."""
        return self.phase in LIVE


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen of a replica's process at one moment."""

    alive: bool
    ready: bool = False
    pid: int | None = None
    start_ticks: int | None = None
    started_at: float | None = None
    exit_code: int | None = None
    message: str = ""
    started: bool = True
    """False where the system refused to start a process at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a replica, for its events."""

    reason: str
    message: str


def observe(replica: Replica, seen: Observation, now: float) -> tuple[Replica | None, Change | None]:
    """The replica after what is seen of its process; None when it is gone for good."""
    if not seen.alive:
        if seen.started_at is not None and replica.started_at is not None and seen.started_at < replica.started_at:
            return replica, None
        return _ended(replica, seen, now)
    updated = replace(replica, pid=seen.pid, start_ticks=seen.start_ticks, started_at=seen.started_at)
    if updated.phase in (Phase.STARTING, Phase.UNREADY, Phase.CRASHED) and seen.ready:
        first = updated.phase is not Phase.UNREADY
        took = now - (updated.started_at or now)
        updated = replace(
            updated,
            phase=Phase.READY,
            since=now,
            ready_at=now if first else updated.ready_at,
            retry_at=None,
            message="",
        )
        return updated, Change("Ready", f"ready after {took:.1f} s" if first else "answers its readiness probe again")
    if updated.phase is Phase.READY and not seen.ready:
        text = seen.message or "does not answer its readiness probe"
        return replace(updated, phase=Phase.UNREADY, since=now, message=text), Change("Unready", text)
    if updated.phase is Phase.CRASHED:
        updated = replace(updated, phase=Phase.STARTING, since=now, retry_at=None)
    if updated.phase is Phase.READY and updated.crashes and now - updated.since >= PROVEN_AFTER_S:
        updated = replace(updated, crashes=0)
    if updated.phase is Phase.STARTING and seen.message:
        updated = replace(updated, message=seen.message)
    return updated, None


def _ended(replica: Replica, seen: Observation, now: float) -> tuple[Replica | None, Change | None]:
    how = _how_it_ended(seen)
    if replica.phase is Phase.STOPPING:
        return None, Change("Stopped", how)
    if replica.phase is Phase.DRAINING:
        return None, Change("Stopped", f"{how} while draining")
    if replica.phase is Phase.CRASHED:
        return replica, None
    proven = replica.phase is Phase.READY and now - replica.since >= PROVEN_AFTER_S
    crashes = 1 if proven else replica.crashes + 1
    delay = RESTART_DELAYS_S[min(crashes, len(RESTART_DELAYS_S)) - 1]
    text = how + (f": {seen.message}" if seen.message else "")
    crashed = replace(
        replica,
        phase=Phase.CRASHED,
        since=now,
        progress_since=now if replica.phase in (Phase.READY, Phase.UNREADY) else replica.progress_since,
        crashes=crashes,
        retry_at=now + delay,
        pid=None,
        start_ticks=None,
        ready_at=None,
        message=text,
    )
    return crashed, Change("Crashed", f"{text}; starts again " + (f"in {delay:g} s" if delay else "at once"))


def _how_it_ended(seen: Observation) -> str:
    if not seen.started:
        return "process did not start"
    if seen.exit_code is None:
        return "process ended"
    if seen.exit_code < 0:
        return f"process was ended by signal {-seen.exit_code}"
    return f"process exited with code {seen.exit_code}"


def moved_away(replicas: Sequence[Replica]) -> frozenset[str]:
    """Names of those whose move is done: their siblings serve in their place, or did."""
    return frozenset(r.replaces for r in replicas if r.replaces and r.phase in (Phase.READY, Phase.DRAINING))


_LEAVE_FIRST: Final = {Phase.CRASHED: 0, Phase.STARTING: 1, Phase.UNREADY: 2, Phase.READY: 3}


def victims(live: Sequence[Replica], count: int, first: Collection[str] = ()) -> list[Replica]:
    """The `count` replicas whose leaving harms least, those named `first` before all others."""
    pool = list(live)
    chosen: list[Replica] = []
    for _ in range(min(count, len(pool))):
        siblings = Counter(d for r in pool for d in r.placement.all_devices)
        victim = min(
            pool,
            key=lambda r: (
                r.name not in first,
                _LEAVE_FIRST[r.phase],
                -max(siblings[d] for d in r.placement.all_devices),
                -r.created_at,
                r.name,
            ),
        )
        pool.remove(victim)
        chosen.append(victim)
    return chosen
