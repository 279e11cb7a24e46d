"""MPS: several processes on one GPU at a time, each with a bound on memory and on the share of compute.

Each device has a control daemon of its own, with its own pipe and log directory, so that a fault on one device leaves
the processes of the others alone. A daemon is known by its pipe directory: it is running if it answers there. Daemons
outlive the controller, as the processes that use them do, and carry the markers of their installation, so that whoever
stops that finds them too. A directory for a device is there from the start of its daemon until its end.

What a process gets holds from when it attaches to the daemon. The compute percentage is a cap and not a reservation,
and the driver rounds it down. The memory limit counts the CUDA context's own overhead, some 150 to 230 MiB, so that
less is left to the program. A process that does not find the daemon is not held to anything: `attached` says who is.

This module has been run against a stand-in for the daemon only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from tangram.node import processes
from tangram.node.mechanisms.slices import GivenSlice, SliceSettings

CONTROL: Final = "nvidia-cuda-mps-control"
#: Variable that tells daemon and processes where they meet.
PIPES: Final = "CUDA_MPS_PIPE_DIRECTORY"
_LOGS: Final = "CUDA_MPS_LOG_DIRECTORY"
_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05
_LONGEST_SOCKET: Final = 107
"""Bytes of the path of a Unix socket."""


class MpsError(RuntimeError):
    """A control daemon could not be started, asked or ended; says which and why."""


class Mps:
    """The control daemons of one installation, each with a directory of mode 0700; devices are told by their ids."""

    def __init__(self, state_dir: Path, control: str = CONTROL) -> None:
        self._state_dir = state_dir.absolute()
        self._control = control
        self._root = self._state_dir / "mps"
        if _is_too_long(self._root / _short("") / "pipe"):
            digest = hashlib.sha256(os.fsencode(self._state_dir)).hexdigest()[:16]
            self._root = Path(tempfile.gettempdir()) / f"tangram-{os.getuid()}-{digest}" / "mps"

    def settings(self, given: GivenSlice) -> SliceSettings:
        """Environment of a process on the slice's device, held to its memory and, but for 0 percent, its compute.

        A daemon shows its processes one device, which is number 0 to them.
        """
        (device,) = given.devices
        pipes, logs = self._directories(device.id)
        env = {
            "CUDA_VISIBLE_DEVICES": device.id,
            PIPES: str(pipes),
            _LOGS: str(logs),
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={given.memory_limit_mib}M",
        }
        if given.compute:
            env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(given.compute)
        return SliceSettings(env)

    def start(self, device: str) -> None:
        """Have the device's daemon run; nothing where it does. Raises MpsError."""
        pipes, logs = self._directories(device)
        if _is_too_long(pipes):
            raise MpsError(f"{pipes}: too long for the sockets that MPS makes there; choose a shorter directory")
        try:
            for directory in (pipes, logs):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (pipes.parent / "device").write_text(device)
        except OSError as error:
            raise MpsError(f"{pipes}: cannot be made: {error.strerror}") from None
        if self.running(device):
            return
        try:
            self._run(pipes, [self._control, "-d"], "", device)
        except MpsError as error:
            raise MpsError(f"the MPS daemon of {device} does not start: {error}") from None
        until = time.monotonic() + _TIMEOUT_S
        while not self.running(device):
            if time.monotonic() > until:
                raise MpsError(f"the MPS daemon of {device} was started and does not answer; see {logs}")
            time.sleep(_POLL_S)

    def running(self, device: str) -> bool:
        """Whether the device's daemon answers."""
        try:
            self._run(self._directories(device)[0], [self._control], "get_server_list\n")
        except MpsError:
            return False
        return True

    def daemons(self) -> tuple[str, ...]:
        """Devices whose daemon was started and not ended since."""
        return tuple(sorted(p.read_text() for p in self._root.glob("*/device")))

    def attached(self, pipes: Path) -> tuple[int, ...]:
        """Process ids of who is attached to the daemon of a pipe directory; raises MpsError where none answers."""
        servers = self._run(pipes, [self._control], "get_server_list\n").split()
        found = [self._run(pipes, [self._control], f"get_client_list {s}\n").split() for s in servers]
        return tuple(sorted(int(pid) for pids in found for pid in pids if pid.isdecimal()))

    def stop(self, device: str) -> None:
        """End the device's daemon once its processes have ended; nothing where it does not run. Raises MpsError."""
        pipes, _ = self._directories(device)
        if self.running(device):
            self._run(pipes, [self._control], "quit\n")
        shutil.rmtree(pipes.parent, ignore_errors=True)

    def _run(self, pipes: Path, argv: list[str], said: str, device: str = "") -> str:
        own = {PIPES: str(pipes), _LOGS: str(pipes.parent / "log")}
        if device:
            own["CUDA_VISIBLE_DEVICES"] = device
        markers = {processes.STATE: str(self._state_dir), processes.ROLE: processes.MPS_ROLE}
        env = processes.child_environment(os.environ, own, markers)
        try:
            done = subprocess.run(
                argv, input=said, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise MpsError(f"{argv[0]} is not installed; it comes with the NVIDIA driver") from None
        except subprocess.TimeoutExpired:
            raise MpsError(f"no answer within {_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise MpsError(f"{argv[0]} cannot be run: {error.strerror}") from None
        if done.returncode != 0:
            raise MpsError((done.stderr or done.stdout).strip() or f"{argv[0]} ended with {done.returncode}")
        return done.stdout

    def _directories(self, device: str) -> tuple[Path, Path]:
        """(pipes, logs)."""
        own = self._root / _short(device)
        return own / "pipe", own / "log"


def _short(device: str) -> str:
    return hashlib.sha256(device.encode()).hexdigest()[:8]


def _is_too_long(pipes: Path) -> bool:
    return len(os.fsencode(pipes / "control_lock")) > _LONGEST_SOCKET
