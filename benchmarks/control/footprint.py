"""What Tangram costs while nothing is asked of it, and how soon it first answers: `examples/fleet.yaml`, no load."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import local
from benchmarks.admin import Admin
from benchmarks.bars import Bar, at_most
from benchmarks.control import fleet, parts

EXAMPLE: Final = Path(__file__).parents[2] / "examples/fleet.yaml"
SETTLE_S: Final = 10.0
WATCH_S: Final = 20.0
ROLES: Final = (parts.SUPERVISOR, parts.CONTROLLER, parts.WORKER)
_MIB: Final = 1024 * 1024


def measure(folder: Path) -> tuple[dict[str, Any], dict[str, Bar]]:
    """(figures, bars) of a fresh Tangram with the example fleet."""
    state, log = folder / "idle", folder / "idle.log"
    began = time.monotonic()
    with local.running(state, log, str(EXAMPLE), *fleet.addresses()) as admin:
        first_answer_s = _first_answer(admin, log, began)
        time.sleep(SETTLE_S)
        pids = parts.ours(state)
        processes = {role: psutil.Process(pids[role]) for role in ROLES}
        before, at = {role: _cpu_s(p) for role, p in processes.items()}, time.monotonic()
        time.sleep(WATCH_S)
        took = time.monotonic() - at
        cpu = {role: 100 * (_cpu_s(p) - before[role]) / took for role, p in processes.items()}
        pss = {role: p.memory_full_info().pss / _MIB for role, p in processes.items()}
    figures = {
        "pss_mib": {role: round(v, 1) for role, v in pss.items()},
        "cpu_percent": {role: round(v, 2) for role, v in cpu.items()},
    }
    return figures, {
        "first_answer_s": at_most(first_answer_s, 5.0),
        "idle_pss_mb": at_most(sum(pss.values()) * _MIB / 1e6, 150.0),
        "idle_cpu_percent": at_most(sum(cpu.values()), 2.0),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _first_answer(admin: Admin, log: Path, began: float) -> float | None:
    """Seconds from the command until it had printed a curl line and a model answered; None if neither came."""

    def answered() -> bool:
        if "curl " not in log.read_text(encoding="utf-8", errors="replace"):
            return False
        name = next(m["name"] for m in admin.get("/models")["items"] if m["ready"])
        try:
            with urllib.request.urlopen(f"{admin.gateway}/v2/models/{name}", timeout=5) as answer:
                return bool(json.load(answer)["name"] == name)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    return time.monotonic() - began if local.wait_until(answered, 30.0, 0.02) else None
