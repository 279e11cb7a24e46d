"""A Tangram of one's own: started as a user would, stopped as a user would."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.admin import Admin, AdminError

_START_S: Final = 60.0
_STOP_S: Final = 60.0

#: The command that was installed beside this interpreter.
TANGRAM: Final = Path(sys.executable).with_name("tangram")


class StartFailed(Exception):
    """Tangram did not come up; the text holds the last lines it said."""


def start(state: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `tangram up ARGUMENTS` in a session of its own, so that Ctrl-C here does not reach it."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [TANGRAM, "up", *arguments, "--state", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free at present."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def listens(port: int) -> bool:
    """Whether something on loopback takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.05) -> bool:
    """Whether the condition became true in time. An admin API that does not answer counts as not yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return True
        except AdminError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)


def settled(admin: Admin) -> bool:
    """Whether the controller has adopted what there is and each model has the replicas it should have."""
    if admin.get("/status")["adopting"]:
        return False
    return all(m["ready"] >= max(m["desired"], m["minReplicas"]) for m in admin.get("/models")["items"])


@contextmanager
def running(state: Path, log: Path, *arguments: str) -> Iterator[Admin]:
    """A Tangram whose models are ready; Ctrl-C to it at the end, and the end waits until it is gone.

    Raises StartFailed when it does not come up within a minute.
    """
    process = start(state, log, *arguments)
    try:

        def up() -> bool:
            if process.poll() is not None:
                raise StartFailed(f"tangram up ended with {process.returncode}:\n{tail(log)}")
            return settled(Admin(state))

        if not wait_until(up, _START_S):
            raise StartFailed(f"tangram up was not ready after {_START_S:.0f} s:\n{tail(log)}")
        yield Admin(state)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        subprocess.run([TANGRAM, "down", "--state", str(state)], check=False, capture_output=True, timeout=_STOP_S)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
