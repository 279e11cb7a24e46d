"""Load on a proxy, and what it cost: wrk for whole seconds, `paced` for parts of one, an exact number, or a rate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.gateway import programs
from benchmarks.gateway.cost import pinned
from benchmarks.gateway.peers import Proxy
from benchmarks.gateway.traffic import Request

_SCRIPT: Final = Path(__file__).with_name("wrk.lua")
_BOUND_S: Final = 60.0
_WARM_REQUESTS: Final = 128


@dataclass(frozen=True, slots=True)
class Run:
    """One run against one proxy."""

    requests: int
    failed: int
    seconds: float
    cpu_us: float
    """Of the proxy, a request."""
    p50_us: float = 0.0
    p99_us: float = 0.0


class Generators:
    """Both load generators, on their cores."""

    def __init__(self, folder: Path, cores: frozenset[int]) -> None:
        """Raises programs.Missing and programs.Failed."""
        self._folder = folder
        self._cores = cores
        self._wrk = programs.find("wrk")
        self._paced = programs.compiled(folder, "paced")
        self._files: dict[Request, Path] = {}

    def flood(self, proxy: Proxy, request: Request, *, connections: int, seconds: float) -> Run:
        """Warmed; then each connection asks again as soon as it was answered, for about so long.

        wrk knows whole seconds only; for less than one, `paced` sends as many requests as that should take.
        Raises programs.Failed.
        """
        warm = self.warm(proxy, request, connections)
        if seconds < 1:
            requests = max(_WARM_REQUESTS, round(seconds * warm.requests / warm.seconds))
            return self.count(proxy, request, connections=connections, requests=requests)
        argv: list[str | Path] = [self._wrk, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s"]
        return self._run(proxy, [*argv, "-s", _SCRIPT, f"http://127.0.0.1:{proxy.port}/", "--", self._file(request)])

    def count(self, proxy: Proxy, request: Request, *, connections: int, requests: int) -> Run:
        """As many requests as that and no more; all are answered when it returns. Raises programs.Failed."""
        return self.pace(proxy, request, connections=connections, requests=requests, rate=0)

    def pace(self, proxy: Proxy, request: Request, *, connections: int, requests: int, rate: float) -> Run:
        """So many requests at so many a second. Raises programs.Failed."""
        argv: list[str | Path] = [
            self._paced,
            "127.0.0.1",
            str(proxy.port),
            self._file(request),
            str(connections),
            str(requests),
        ]
        return self._run(proxy, [*argv, str(rate)])

    def warm(self, proxy: Proxy, request: Request, connections: int) -> Run:
        """What a proxy does only at first is behind it."""
        return self.count(proxy, request, connections=connections, requests=max(_WARM_REQUESTS, connections))

    def _file(self, request: Request) -> Path:
        if request not in self._files:
            self._files[request] = self._folder / f"{len(self._files)}.request"
            self._files[request].write_bytes(request.raw)
        return self._files[request]

    def _run(self, proxy: Proxy, argv: Sequence[str | Path]) -> Run:
        before = proxy.cpu_s()
        with pinned(self._cores):
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_BOUND_S)
        cost = proxy.cpu_s() - before
        if done.returncode:
            raise programs.Failed(f"{Path(argv[0]).name} against {proxy.name}: {done.stderr or done.stdout}")
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if not told["requests"]:
            raise programs.Failed(f"{proxy.name} answered nothing to {Path(argv[0]).name}")
        return Run(
            requests=told["requests"],
            failed=told["errors"],
            seconds=told["seconds"],
            cpu_us=1e6 * cost / told["requests"],
            p50_us=told.get("p50_us", 0.0),
            p99_us=told.get("p99_us", 0.0),
        )
