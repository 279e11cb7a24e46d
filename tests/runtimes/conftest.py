"""A real embedded server in a process of its own, around a model that the test writes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first truthy value of the condition; fails the test when there is none in time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"never happened: {what}")


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int = 0

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(
        self, path: str, body: object = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes goes as JSON."""
        connection = self.connect()
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method or ("GET" if body is None else "POST"), path, raw, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.headers))
        finally:
            connection.close()

    def infer(self, *inputs: Mapping[str, Any], model: str = "m", **more: Any) -> Answer:
        return self.ask(f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server: `serve(source_or_path, ready=True, env={}, port=0)`."""
    running: list[Served] = []

    def start(model: str | Path, *, ready: bool = True, env: Mapping[str, str] | None = None, port: int = 0) -> Served:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        if isinstance(model, str):
            path = folder / "m.py"
            path.write_text(model)
        else:
            path = model
        argv = [sys.executable, "-m", "tangram.node.runtimes.embedded", "--model", str(path), "--name", "m"]
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*argv, "--host", "127.0.0.1", "--port", str(port)],
                stderr=log,
                stdout=log,
                env={k: v for k, v in os.environ.items() if k != "TANGRAM_CPU_CORES"} | dict(env or {}),
            )
        served = Served(process, folder, port)
        running.append(served)
        if port == 0:
            found = wait_for(
                lambda: re.search(r"listening on http://[\d.]+:(\d+)", served.log) or process.poll() is not None,
                "the server listens",
            )
            if isinstance(found, re.Match):
                served.port = int(found[1])
                if ready:
                    wait_for(lambda: served.ask("/v2/health/ready").status == 200, "the server is ready")
        return served

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait(PATIENCE_S)
