"""The watching side against an admin API of the real shape: `views` render what it reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from benchmarks.admin import Admin, AdminError
from loadtests import run
from loadtests.look import sample
from loadtests.report import Count
from tangram.control.views import DeviceView, ModelView, ReplicaView, StatusView

MODEL = ModelView(
    name="digits",
    project="default",
    priority=0,
    runtime="embedded",
    ready=2,
    starting=1,
    draining=0,
    desired=3,
    min_replicas=1,
    max_replicas=6,
    target_qps=20,
    revision="0" * 8,
    created_at=0,
)
REPLICA = ReplicaView(
    name="digits-1",
    model="digits",
    revision="0" * 8,
    phase="Ready",
    node="node-a",
    device="node-a/gpu-0",
    devices=("node-a/gpu-0",),
    memory_request=100,
    memory_limit=100,
    compute=20,
    mechanism="virtual",
    port=1,
    created_at=0,
)
DEVICE = DeviceView(
    id="node-a/gpu-0",
    node="node-a",
    model="virtual",
    memory_total=1000,
    memory_reserve=100,
    memory_requested=300,
    compute_requested=60,
    clients=3,
    max_clients=48,
    mechanisms=("virtual",),
)
STATUS = StatusView(
    version="0", term=1, adopting=False, gateway="", workers=(), models=1, replicas=1, oversold=("x",), started_at=0
)


class Handler(BaseHTTPRequestHandler):
    pages: ClassVar[Mapping[str, str]] = {}

    def do_GET(self) -> None:
        known = self.path in self.pages and self.headers["Authorization"] == "Bearer secret"
        body = self.pages[self.path].encode() if known else b'{"error": "no"}'
        self.send_response(200 if known else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    def listing(*views: ModelView | ReplicaView | DeviceView) -> str:
        return '{"items": [' + ", ".join(v.model_dump_json(by_alias=True) for v in views) + "]}"

    class Pages(Handler):
        pages: ClassVar[Mapping[str, str]] = {
            "/api/v1alpha1/status": STATUS.model_dump_json(by_alias=True),
            "/api/v1alpha1/models": listing(MODEL),
            "/api/v1alpha1/devices": listing(DEVICE),
            "/api/v1alpha1/replicas": listing(REPLICA, REPLICA.model_copy(update={"name": "digits-2"})),
        }

    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        endpoints = {"gateway": "http://127.0.0.1:1/", "admin": url, "pid": 1}
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
        (tmp_path / "admin.token").write_text("secret\n")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path
        server.shutdown()
        thread.join()


def test_one_look_holds_replicas_devices_and_what_is_oversold(state: Path) -> None:
    look = sample(Admin(state), at=7.0)
    assert look.models == {"digits": Count(ready=2, starting=1, draining=0)}
    device = look.devices["node-a/gpu-0"]
    assert (device.memory, device.requested, device.compute, device.replicas) == (900, 300, 60, {"digits": 2})
    assert (look.at, look.oversold) == (7.0, ("x",))


def test_the_stepped_model_tells_its_target(state: Path) -> None:
    assert run.target(Admin(state)) == (20, 6)


def test_a_wrong_token_is_told(state: Path) -> None:
    (state / "admin.token").write_text("other")
    with pytest.raises(AdminError, match="GET /status: 403"):
        Admin(state).get("/status")


def test_nothing_running_is_found_as_nothing(tmp_path: Path) -> None:
    assert run.find(tmp_path) is None
    (tmp_path / "admin.token").write_text("secret")
    (tmp_path / "endpoints.json").write_text(
        '{"gateway": "http://127.0.0.1:1", "admin": "http://127.0.0.1:1", "pid": 1}'
    )
    assert run.find(tmp_path) is None


def test_a_model_that_cannot_be_stepped_is_told_with_the_mend(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, told in (
        ({"fixed_replicas": 2}, "tangram set digits --replicas auto"),
        ({"target_qps": None}, "tangram set digits --target-qps 20"),
        ({"name": "other"}, "start it with examples/fleet.yaml"),
    ):
        view = MODEL.model_copy(update=change).model_dump(mode="json", by_alias=True)
        monkeypatch.setattr(Admin, "get", lambda self, path, view=view: {"items": [view]})
        with pytest.raises(run.CannotRun, match=told):
            run.target(Admin(state))
