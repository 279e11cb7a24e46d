"""Where things lie in a state directory. Standard library only: the supervisor imports it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

#: Environment variable that marks every process of an installation with its state directory.
STATE_MARKER: Final = "TANGRAM_STATE"
#: Environment variable naming a process of ours: controller, worker-0, worker-1, ...
ROLE_MARKER: Final = "TANGRAM_ROLE"
#: Environment variable with the SHA-256 of the file that a controller was started with.
FILE_MARKER: Final = "TANGRAM_FILE_SHA256"

#: Longest path that fits the address of a Unix socket on Linux (sun_path, 108 bytes with the closing zero).
_SUN_PATH: Final = 107


class StatePaths:
    """The files of one state directory."""

    def __init__(self, state: Path) -> None:
        self.root = Path(state).absolute()
        self.logs = self.root / "logs"
        """Logs of replicas."""
        self.database = self.root / "tangram.db"
        self.token = self.root / "admin.token"
        self.endpoints = self.root / "endpoints.json"
        self.lock = self.root / "supervisor.lock"
        self.limits = self.root / "limits.shm"

    def table_cache(self, worker: int) -> Path:
        """Where a gateway worker keeps its last table."""
        return self.root / f"table-{worker}.json"

    def log(self, role: str) -> Path:
        """Log of a process of ours; apart from those of replicas, one of which may be called worker-1."""
        return self.root / f"{role}.log"

    @property
    def wire(self) -> Path:
        """The controller's Unix socket."""
        return self._socket("wire.sock")

    @property
    def heartbeat(self) -> Path:
        """The supervisor's Unix socket, which the controller and the workers send their heartbeats to."""
        return self._socket("heartbeat.sock")

    def _socket(self, name: str) -> Path:
        """Beside the temporary files where the state directory's path is too long."""
        path = self.root / name
        if len(os.fsencode(path)) <= _SUN_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tangram-{os.getuid()}-{digest}" / name


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
