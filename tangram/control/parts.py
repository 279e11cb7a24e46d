"""The parts of an installation that a supervisor runs: how each is started, and what is known of its process."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.heartbeat import HEARTBEAT
from gateway.listener import is_listening, listening_socket, parse_address
from tangram.control.paths import FILE_MARKER, ROLE_MARKER, STATE_MARKER, StatePaths, file_digest
from tangram.control.watchdog import Silence
from tangram.node.processes import Found

#: Seconds of silence after which a part is taken for stuck. A turn of the controller may compute for seconds.
WORKER_SILENCE_S: Final = 10.0
CONTROLLER_SILENCE_S: Final = 30.0

CONTROLLER: Final = "controller"
_NO_NATIVE: Final = "--no-native"
_CRASHES: Final = frozenset({-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE, -signal.SIGABRT})


@dataclass(slots=True)
class Part:
    """The controller or one worker."""

    role: str
    argv: list[str]
    markers: dict[str, str]
    pid: int = 0
    start_ticks: int = 0
    fd: int = -1
    """pidfd of the process that runs; -1 while none does."""
    started_at: float = 0.0
    failures: int = 0
    start_at: float | None = None
    """When it is to be started (monotonic); None while it runs."""
    worked: bool = False
    """Whether one of its processes ever ran: then it can, and one that says it cannot is tried again."""
    log_offset: int = 0
    listen: tuple[str, int] | None = None
    """Of a worker: where it listens."""
    listener: socket.socket | None = None
    """Held here too, so that connections wait while the worker is dead."""
    adopted: bool = False
    silence: Silence | None = None
    """For how long it has not been heard; None while it does not run."""

    def began(self, *, adopted: bool) -> None:
        """Its process runs since now, or is watched since now."""
        now = time.monotonic()
        self.started_at, self.start_at, self.adopted = now, None, adopted
        bound_s = CONTROLLER_SILENCE_S if self.role == CONTROLLER else WORKER_SILENCE_S
        self.silence = Silence(bound_s, now, new=not adopted)

    @property
    def running(self) -> bool:
        return self.fd >= 0

    def listener_at(self, address: tuple[str, int]) -> socket.socket:
        """The socket of a worker, made again where the last one no longer listens. Raises OSError."""
        if self.listener is None or not is_listening(self.listener):
            if self.listener is not None:
                self.listener.close()
            self.listener = listening_socket(*address)
        return self.listener

    def is_run_by(self, process: Found) -> bool:
        """Whether a process was started as this part would be."""
        try:
            raw = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            return False
        argv = [os.fsdecode(a) for a in raw.rstrip(b"\0").split(b"\0")]
        return argv == self.argv and all(process.env.get(k) == v for k, v in self.markers.items() if k != STATE_MARKER)

    def made_plain(self, code: int | None) -> bool:
        """Whether a worker that ended so runs plain Python from now on: compiled code may crash where that does not."""
        if self.listen is None or code not in _CRASHES or _NO_NATIVE in self.argv:
            return False
        self.argv.append(_NO_NATIVE)
        return True


def parts_of(options: argparse.Namespace, paths: StatePaths) -> list[Part]:
    """The processes of an installation and how they are started."""
    python = sys.executable
    json_logs = ["--log-json"] if options.log_json else []
    file = Path(options.file).absolute()

    def markers(role: str, extra: Mapping[str, str] = {}) -> dict[str, str]:
        return {STATE_MARKER: str(paths.root), ROLE_MARKER: role, HEARTBEAT: str(paths.heartbeat), **extra}

    controller = [python, "-m", "tangram.control.main", "--state", str(paths.root), "--file", str(file)]
    controller += ["--listen", options.listen, "--admin", options.admin, "--workers", str(options.workers), *json_logs]
    controller += ["--require-key"] if options.require_key else []
    controller += ["--advise"] if options.advise else []
    tls = ["--tls-cert", str(options.tls_cert), "--tls-key", str(options.tls_key)] if options.tls_cert else []
    controller += ["--gateway-scheme", "https"] if tls else []
    parts = [Part(CONTROLLER, controller, markers(CONTROLLER, {FILE_MARKER: file_digest(file)}))]
    for index in range(options.workers):
        role = f"worker-{index}"
        argv = [python, "-m", "gateway.worker", "--listen", options.listen, "--index", str(index)]
        argv += ["--workers", str(options.workers), "--controller", str(paths.wire)]
        argv += ["--cache", str(paths.table_cache(index)), "--limits", str(paths.limits), *tls, *json_logs]
        argv += ["--no-fast-path"] if options.no_fast_path else []
        argv += [_NO_NATIVE] if options.no_native else []
        parts.append(Part(role, argv, markers(role), listen=parse_address(options.listen)))
    return parts
