"""kill -9 under load, part by part: what clients lose, how soon the part is back, and what is left behind."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import local
from benchmarks.admin import Admin
from benchmarks.bars import Bar, at_most
from benchmarks.control import fleet, parts
from benchmarks.control.traffic import CLIENTS, REFUSED, Traffic

BACK_S: Final = 5.0
_LIMIT_S: Final = 30.0
_CALM_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Killed:
    back_s: float | None
    failures: Sequence[str]


def measure(admin: Admin, state: Path, log: Path, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Bar]]:
    """(figures, bars); `arguments` are those that `tangram up` was started with, to start a second one."""
    with Traffic(admin.gateway, fleet.STEADY) as traffic:
        time.sleep(_CALM_S)
        replica = _ready(admin)[0]

        def ready() -> bool:
            return len(_ready(admin)) == fleet.STEADY_REPLICAS

        killed = {
            "replica": _kill(traffic, replica, lambda: replica not in _ready(admin) and ready()),
            "worker": _kill_part(traffic, state, parts.WORKER, traffic.ask_once),
            "controller": _kill_part(
                traffic, state, parts.CONTROLLER, lambda: not admin.get("/status")["adopting"] and ready()
            ),
        }
        before = {**parts.ours(state), **{f"replica {pid}": pid for pid in _ready(admin)}}
        killed["supervisor"] = _kill(
            traffic,
            before[parts.SUPERVISOR],
            lambda: (
                parts.ours(state).get(parts.SUPERVISOR, before[parts.SUPERVISOR]) != before[parts.SUPERVISOR]
                and "adopted controller" in log.read_text(encoding="utf-8", errors="replace")
            ),
            then=lambda: local.start(state, log, *arguments),
        )
        after = {**parts.ours(state), **{f"replica {pid}": pid for pid in _ready(admin)}}
        replaced = [r for r, pid in before.items() if r != parts.SUPERVISOR and after.get(r) != pid]
        answered = traffic.answered
    held = 0.0 if local.wait_until(lambda: _in_flight(admin) == 0, BACK_S) else float(_in_flight(admin))
    figures = {
        "answered": answered,
        "failures": {name: dict(Counter(k.failures)) for name, k in killed.items()},
        "replaced_at_adoption": replaced,
    }
    bars = {f"{name}_back_s": at_most(k.back_s, BACK_S) for name, k in killed.items()}
    # A worker's death cuts its connections: each client may lose the request it has on one, and connect again.
    allowed = {"replica": CLIENTS, "worker": CLIENTS, "controller": 0, "supervisor": 0}
    refused = {name: sum(f.startswith(REFUSED) for f in k.failures) for name, k in killed.items()}
    bars |= {f"{name}_failures": at_most(len(k.failures) - refused[name], allowed[name]) for name, k in killed.items()}
    bars["refused_connections"] = at_most(sum(refused.values()), 0)
    bars["replaced_at_adoption"] = at_most(len(replaced), 0)
    bars["in_flight_left"] = at_most(held, 0)
    bars["extra_replicas"] = at_most(max(0, len(_ready(admin)) - fleet.STEADY_REPLICAS), 0)
    return figures, bars


def _kill_part(traffic: Traffic, state: Path, role: str, back: Callable[[], bool]) -> Killed:
    pid = parts.ours(state)[role]
    return _kill(traffic, pid, lambda: parts.ours(state).get(role, pid) != pid and back())


def _kill(traffic: Traffic, pid: int, back: Callable[[], bool], then: Callable[[], object] = lambda: None) -> Killed:
    """Kill a process and wait until it is back; failures count until two seconds after that."""
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    then()
    back_s = time.monotonic() - began if local.wait_until(back, _LIMIT_S, 0.02) else None
    time.sleep(_CALM_S)
    return Killed(back_s, traffic.failed_since(began))


def _ready(admin: Admin) -> list[int]:
    """Process ids of the ready replicas of the model under load."""
    rows = admin.get(f"/replicas?model={fleet.STEADY}")["items"]
    return sorted(r["pid"] for r in rows if r["phase"] == "Ready")


def _in_flight(admin: Admin) -> int:
    return sum(m["inFlight"] + m["queued"] for m in admin.get("/models")["items"])
