"""Load on a proxy, and what it cost: wrk for as much as a proxy can do, `paced` for a rate or an exact number.

While wrk runs, a window is measured: from when each connection has been answered a few times, for so many seconds. What
was answered in it is told by the upstream. So what a connection costs to open and to end is not mistaken for what a
request costs, and a window may be short.
"""

from __future__ import annotations

import json
import mmap
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway import programs
from benchmarks.gateway.cost import pinned
from benchmarks.gateway.peers import Proxy
from benchmarks.gateway.traffic import Request
from benchmarks.local import wait_until

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_BOUND_S: Final = 60.0
_WARM_ANSWERS: Final = 3
"""For each connection."""


class Unit(IntEnum):
    """What the upstream counts, in the order in which it does."""

    ANSWERS = 0
    EVENTS = 1


@dataclass(frozen=True, slots=True)
class Run:
    """One run against one proxy."""

    done: int
    """Requests, or events of a stream."""
    failed: int
    """Requests."""
    seconds: float
    cpu_us: float
    """Of the proxy, for each that was done."""
    p50_us: float = 0.0
    p99_us: float = 0.0


class Counts:
    """What the upstream has answered, in a file that both map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(16))
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 16, access=mmap.ACCESS_READ)

    def read(self, unit: Unit) -> int:
        """As of now."""
        return int(struct.unpack_from("=QQ", self._memory)[unit])


class Generators:
    """Both load generators, on their cores."""

    def __init__(self, folder: Path, cores: frozenset[int], counts: Counts) -> None:
        """Raises programs.Missing and programs.Failed."""
        self._folder = folder
        self._cores = cores
        self._counts = counts
        self._wrk = programs.find("wrk")
        self._paced = programs.compiled(folder, "paced")
        self._files: dict[Request, Path] = {}

    def flood(
        self, proxy: Proxy, request: Request, *, connections: int, seconds: float, unit: Unit = Unit.ANSWERS
    ) -> Run:
        """Each connection asks again as soon as it was answered; a window of so long. Raises programs.Failed.

        It is longer where there was not an answer for each connection.
        """
        options = ["-t1", f"-c{connections}", f"-d{_BOUND_S:.0f}s", "--timeout", "20s"]
        url = f"http://127.0.0.1:{proxy.port}/"
        argv: list[str | Path] = [self._wrk, *options, "-s", _SCRIPT, url, "--", self._file(request)]
        warm = self._counts.read(unit) + _WARM_ANSWERS * connections
        with pinned(self._cores):
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            self._wait(proxy, unit, warm)
            at, cpu_s, done = time.monotonic(), proxy.cpu_s(), self._counts.read(unit)
            time.sleep(seconds)
            self._wait(proxy, unit, done + connections)
            took, cpu_s, done = time.monotonic() - at, proxy.cpu_s() - cpu_s, self._counts.read(unit) - done
        finally:
            # It stops and says what it counted.
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=_BOUND_S)
        return Run(done, _last_line(said, self._wrk, proxy)["errors"], took, 1e6 * cpu_s / done)

    def count(self, proxy: Proxy, request: Request, *, connections: int, requests: int) -> Run:
        """As many requests as that and no more; all are answered when it returns. Raises programs.Failed."""
        return self.pace(proxy, request, connections=connections, requests=requests, rate=0)

    def pace(self, proxy: Proxy, request: Request, *, connections: int, requests: int, rate: float) -> Run:
        """So many requests at so many a second. Raises programs.Failed."""
        where: list[str | Path] = ["127.0.0.1", str(proxy.port), self._file(request)]
        argv = [self._paced, *where, str(connections), str(requests), str(rate)]
        before = proxy.cpu_s()
        try:
            with pinned(self._cores):
                ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_BOUND_S)
        except subprocess.TimeoutExpired:
            raise programs.Failed(f"{proxy.name} did not answer {requests} requests in {_BOUND_S:.0f} s") from None
        cost = proxy.cpu_s() - before
        told = _last_line(ran.stdout or ran.stderr, self._paced, proxy)
        each_us = 1e6 * cost / told["requests"]
        return Run(told["requests"], told["errors"], told["seconds"], each_us, told["p50_us"], told["p99_us"])

    def _wait(self, proxy: Proxy, unit: Unit, count: int) -> None:
        if not wait_until(lambda: self._counts.read(unit) >= count, _BOUND_S / 3, 0.002):
            raise programs.Failed(f"{proxy.name} does not answer")

    def _file(self, request: Request) -> Path:
        if request not in self._files:
            self._files[request] = self._folder / f"{len(self._files)}.request"
            self._files[request].write_bytes(request.raw)
        return self._files[request]


def _last_line(said: str, program: Path, proxy: Proxy) -> dict[str, Any]:
    """The JSON that a load generator ends with. Raises programs.Failed where it does not."""
    try:
        told: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        raise programs.Failed(f"{program.name} against {proxy.name}: {said.strip() or 'it said nothing'}") from None
    return told
