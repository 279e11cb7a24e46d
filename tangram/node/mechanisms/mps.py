"""MPS: several processes on one GPU at a time, each with a bound on memory and on the share of compute.

Each device has a control daemon of its own, with its own pipe and log directory, so that a fault on one device leaves
the processes of the others alone. A daemon is known by its pipe directory: it is running if it answers there. Daemons
outlive the controller, as the processes that use them do.

What a process gets holds from when it attaches to the daemon. The compute percentage is a cap and not a reservation,
and the driver rounds it down. The memory limit counts the CUDA context's own overhead, some 150 to 230 MiB, so that
less is left to the program. A process that does not find the daemon is not held to anything: `clients` says who is
attached.

This module has been run against a stand-in for the daemon only, and no runtime uses it yet.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from packer.inventory import Device
from tangram.node.mechanisms.slices import SliceSettings

CONTROL: Final = "nvidia-cuda-mps-control"
_TIMEOUT_S: Final = 10.0
_LONGEST_SOCKET: Final = 107
"""Bytes of the path of a Unix socket."""


class MpsError(RuntimeError):
    """A control daemon could not be started, asked or ended; says which and why."""


class Mps:
    """The control daemons of one machine, each with a directory below `root` (of mode 0700)."""

    def __init__(self, root: Path, control: str = CONTROL) -> None:
        self._root = root
        self._control = control

    def settings(self, device: Device, memory_mib: int, compute: int) -> SliceSettings:
        """Environment of a process that may use so many MiB and percent of the device; 0 percent is without a cap."""
        env = {
            "CUDA_VISIBLE_DEVICES": device.id,
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipes(device)),
            "CUDA_MPS_LOG_DIRECTORY": str(self._logs(device)),
            # The daemon shows its processes one device, which is number 0 to them.
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={memory_mib}M",
        }
        if compute:
            env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(compute)
        return SliceSettings(env)

    def start(self, device: Device) -> None:
        """Have the device's daemon run; nothing where it does. Raises MpsError."""
        pipes, logs = self._pipes(device), self._logs(device)
        if len(os.fsencode(pipes / "control_lock")) > _LONGEST_SOCKET:
            raise MpsError(f"{pipes}: too long for the sockets that MPS makes there; choose a shorter directory")
        for directory in (pipes, logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.running(device):
            return
        try:
            self._run(device, [self._control, "-d"], "")
        except MpsError as error:
            raise MpsError(f"the MPS daemon of {device.id} does not start: {error}") from None

    def running(self, device: Device) -> bool:
        """Whether the device's daemon answers."""
        try:
            self._run(device, [self._control], "get_server_list\n")
        except MpsError:
            return False
        return True

    def clients(self, device: Device) -> tuple[int, ...]:
        """Process ids of who is attached to the device's daemon; raises MpsError where it does not answer."""
        servers = self._run(device, [self._control], "get_server_list\n").split()
        found = [self._run(device, [self._control], f"get_client_list {s}\n").split() for s in servers]
        return tuple(sorted(int(pid) for pids in found for pid in pids))

    def stop(self, device: Device) -> None:
        """End the device's daemon once its processes have ended; nothing where it does not run."""
        if self.running(device):
            self._run(device, [self._control], "quit\n")

    def _run(self, device: Device, argv: list[str], said: str) -> str:
        env: Mapping[str, str] = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": device.id,
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipes(device)),
            "CUDA_MPS_LOG_DIRECTORY": str(self._logs(device)),
        }
        try:
            done = subprocess.run(
                argv, input=said, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError:
            raise MpsError(f"{argv[0]} is not installed; it comes with the NVIDIA driver") from None
        except subprocess.TimeoutExpired:
            raise MpsError(f"no answer within {_TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            raise MpsError((done.stderr or done.stdout).strip() or f"{argv[0]} ended with {done.returncode}")
        return done.stdout

    def _pipes(self, device: Device) -> Path:
        return self._root / _short(device) / "pipe"

    def _logs(self, device: Device) -> Path:
        return self._root / _short(device) / "log"


def _short(device: Device) -> str:
    return hashlib.sha256(device.id.encode()).hexdigest()[:8]
