"""A whole installation as a user starts it, on free ports and a state directory of its own, and a load on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tangram.node.processes import find_processes

#: A model that answers with its own process id, after as many milliseconds as the request says.
MODEL = """
import os, time
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

class Who(Model):
    inputs = [Tensor("delay_ms", "INT32", (1,))]
    outputs = [Tensor("pid", "INT32", (1,))]

    def predict(self, inputs):
        time.sleep(int(inputs["delay_ms"][0]) / 1000)
        return {"pid": np.array([os.getpid()], np.int32)}
"""

FLEET = """
apiVersion: tangram.dev/v1alpha1
kind: Fleet
metadata: {name: test}
spec:
  nodes:
  - name: node-a
    devices:
    - {name: gpu-0, memory: 1Gi, cores: "1"}
    - {name: gpu-1, memory: 1Gi, cores: "1"}
"""


def model_document(name: str = "who", *, runtime: str = "", scaling: str = "minReplicas: 2, maxReplicas: 4") -> str:
    """YAML of one model that runs MODEL."""
    return f"""
---
apiVersion: tangram.dev/v1alpha1
kind: Model
metadata: {{name: {name}}}
spec:
  runtime: {{model: who.py, terminationGracePeriodSeconds: 3{", " + runtime if runtime else ""}}}
  slice: {{memory: {{request: 100Mi, limit: 200Mi}}, compute: 20}}
  scaling: {{{scaling}}}
"""


def wait_for(
    look: Callable[[], Any], timeout_s: float = 30.0, what: str = "", told: Callable[[], str] = lambda: ""
) -> Any:
    """Look until the result is neither None nor false; what was seen last is in the error."""
    until = time.monotonic() + timeout_s
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s:g} s: {what or look}\n{told()}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Installation:
    """One state directory and what runs on it."""

    folder: Path
    workers: int = 1
    gateway_port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    supervisor: subprocess.Popen[bytes] | None = None

    document = staticmethod(model_document)
    wait_for = staticmethod(wait_for)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def file(self) -> Path:
        return self.folder / "fleet.yaml"

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def write(self, *models: str, fleet: str = FLEET) -> None:
        (self.folder / "who.py").write_text(MODEL)
        self.file.write_text(fleet + "".join(models or (model_document(),)))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tangram.cli.main", *arguments]

    def up(self) -> None:
        """`tangram up`, in the background."""
        arguments = ["up", str(self.file), "--state", str(self.state), "--workers", str(self.workers)]
        arguments += ["--listen", f"127.0.0.1:{self.gateway_port}", "--admin", f"127.0.0.1:{self.admin_port}"]
        with (self.folder / "up.out").open("ab") as out:
            self.supervisor = subprocess.Popen(
                self.command(*arguments), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def run(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """One tangram command against this installation."""
        env = {**os.environ, "TANGRAM_STATE_DIR": str(self.state)}
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, env=env, check=False
        )

    def get(self, path: str) -> Any:
        """GET of the admin API; None while it does not answer."""
        try:
            token = (self.state / "admin.token").read_text().strip()
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.admin_port}/api/v1alpha1{path}", headers={"Authorization": f"Bearer {token}"}
            )
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def items(self, path: str) -> list[dict[str, Any]]:
        found = self.get(path)
        return found["items"] if found else []

    def replicas(self, phase: str = "Ready", model: str = "who") -> list[dict[str, Any]]:
        return [r for r in self.items(f"/replicas?model={model}") if r["phase"] == phase]

    def wait_ready(self, count: int, model: str = "who", timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Until exactly so many replicas are ready and all workers know; returns them."""

        def look() -> list[dict[str, Any]] | None:
            there = self.items(f"/replicas?model={model}")
            ready = [r for r in there if r["phase"] == "Ready"]
            status = self.get("/status")
            connected = [w for w in status["workers"] if w["connected"]] if status else []
            settled = len(ready) == count == len(there) and len(connected) == self.workers
            return ready if settled else None

        wait = f"{count} ready replicas of {model} and none else"
        return wait_for(look, timeout_s, wait, self.told)

    def pid(self, role: str) -> int:
        """Process id of controller, worker-0, ..."""

        def look() -> int | None:
            return next((p.pid for p in find_processes(self.state) if p.env.get("TANGRAM_ROLE") == role), None)

        return wait_for(look, 10.0, f"a process {role}")

    def told(self) -> str:
        texts = [(self.folder / "up.out").read_text(errors="replace")] if (self.folder / "up.out").exists() else []
        logs = sorted(self.state.rglob("*.log"))
        texts += [f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in logs]
        return "\n".join(texts)

    def stop(self) -> int:
        """Ctrl-C; the supervisor's exit code."""
        assert self.supervisor is not None
        if self.supervisor.poll() is None:
            self.supervisor.send_signal(signal.SIGINT)
        return self.supervisor.wait(60)

    def clean_up(self) -> None:
        if self.supervisor is not None and self.supervisor.poll() is None:
            self.supervisor.send_signal(signal.SIGINT)
            try:
                self.supervisor.wait(30)
            except subprocess.TimeoutExpired:
                self.supervisor.kill()
                self.supervisor.wait()
        left = find_processes(self.state) if self.state.exists() else []
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path)
    yield made
    made.clean_up()


@dataclass
class Outcome:
    """One request's fate."""

    started: float
    ended: float
    status: int
    """0: the connection failed or was cut."""
    pid: int = 0
    """Of the replica that answered."""
    detail: str = ""


@dataclass
class Load:
    """Clients that keep asking, each on a connection of its own."""

    url: str
    clients: int = 4
    delay_ms: int = 5
    pause_s: float = 0.01
    outcomes: list[Outcome] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        self._stop = asyncio.Event()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            tasks = [asyncio.create_task(self._client(session)) for _ in range(self.clients)]
            try:
                yield self
            finally:
                self._stop.set()
                await asyncio.gather(*tasks)

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stop.is_set():
            await self._ask(session)
            await asyncio.sleep(self.pause_s)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        body = {"inputs": [{"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [self.delay_ms]}]}
        started = time.monotonic()
        try:
            async with session.post(self.url, json=body) as answer:
                text = await answer.text()
                pid = json.loads(text)["outputs"][0]["data"][0] if answer.status == 200 else 0
                self.outcomes.append(Outcome(started, time.monotonic(), answer.status, pid, text[:200]))
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcomes.append(Outcome(started, time.monotonic(), 0, 0, repr(error)))

    @property
    def failures(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status != 200]

    def answered(self) -> int:
        return sum(o.status == 200 for o in self.outcomes)

    async def flow(self, count: int = 30, timeout_s: float = 20.0) -> None:
        """Until so many more requests were answered."""
        target = self.answered() + count
        await asyncio.to_thread(wait_for, lambda: self.answered() >= target, timeout_s, f"{count} more answers")


@pytest.fixture
def make_load(installation: Installation) -> Callable[..., Load]:
    return lambda model="who", **settings: Load(f"{installation.gateway}/v2/models/{model}/infer", **settings)
