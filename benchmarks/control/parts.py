"""The processes of one installation, found as the supervisor finds them: by the markers in their environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tangram.cli.up import supervisor_of
from tangram.control.paths import ROLE_MARKER, StatePaths
from tangram.node.processes import find_processes

SUPERVISOR = "supervisor"
CONTROLLER = "controller"
WORKER = "worker-0"


def ours(state: Path) -> Mapping[str, int]:
    """Process id by role: supervisor, controller, worker-0, ..."""
    paths = StatePaths(state)
    found = {}
    for process in find_processes(state):
        role = process.env.get(ROLE_MARKER)
        if role and process.session == process.pid:
            found[role] = process.pid
    supervisor = supervisor_of(paths)
    if supervisor is not None:
        found[SUPERVISOR] = supervisor.pid
    return found
