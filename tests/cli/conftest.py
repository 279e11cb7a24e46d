from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from tangram.cli.main import app
from tangram.control.api import make_app
from tangram.control.security import load_token


@dataclass
class Ran:
    code: int
    out: str
    err: str


Tangram = Callable[..., Ran]


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module tests/control/fake_facade.py."""
    if "fake_facade" not in sys.modules:
        path = Path(__file__).parents[1] / "control" / "fake_facade.py"
        spec = importlib.util.spec_from_file_location("fake_facade", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fake_facade"] = module
        spec.loader.exec_module(module)
    return sys.modules["fake_facade"]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TANGRAM_STATE_DIR", "TANGRAM_ADMIN", "TANGRAM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tangram() -> Tangram:
    """Runs a command; its exit code and what it printed."""

    def run(*arguments: str) -> Ran:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def facade(fakes: ModuleType, tmp_path: Path) -> Any:
    """One model, "digits", with one replica, a device and a decision."""
    facade = fakes.FakeFacade(log_folder=tmp_path)
    model = fakes.parse_documents([fakes.model_document()]).models[0]
    facade.specs_by_name["digits"] = model
    facade.replica_views.append(fakes.a_replica(revision=model.revision))
    facade.device_views.append(fakes.a_device())
    facade.decision_views.append(fakes.a_decision())
    facade.event_views.append(
        fakes.EventView(at=fakes.NOW - 5, model="digits", replica="digits-7f3a1", reason="Started", message="pid 4242")
    )
    return facade


@pytest.fixture
def running(facade: Any, tmp_path: Path) -> Iterator[str]:
    """The admin API over the facade in a thread, found through .tangram in the working directory; its URL."""
    state = tmp_path / ".tangram"
    state.mkdir()
    token = load_token(state)
    loop = asyncio.new_event_loop()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(make_app(facade, token), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    endpoints = {"gateway": "http://127.0.0.1:8080", "admin": url, "pid": 1}
    (state / "endpoints.json").write_text(json.dumps(endpoints))
    yield url
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
