from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tangram.control.api import make_app

TOKEN = "a-token-of-the-tests"


def _fake_facade() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_facade", Path(__file__).with_name("fake_facade.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_facade"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module fake_facade."""
    return sys.modules.get("fake_facade") or _fake_facade()


@pytest.fixture
def facade(fakes: ModuleType, tmp_path: Path) -> Any:
    """One model, "digits", with one replica, a device and a decision."""
    facade = fakes.FakeFacade(log_folder=tmp_path)
    model = fakes.parse_documents([fakes.model_document()]).models[0]
    facade.specs_by_name["digits"] = model
    facade.replica_views.append(fakes.a_replica(revision=model.revision))
    facade.device_views.append(fakes.a_device())
    facade.decision_views.append(fakes.a_decision())
    return facade


@pytest.fixture
async def base(facade: Any) -> AsyncIterator[str]:
    """URL of the admin API over the facade, on a real socket."""
    runner = web.AppRunner(make_app(facade, TOKEN, ["127.0.0.1"]), access_log=None, shutdown_timeout=5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


@pytest.fixture
async def client(base: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Sends the token."""
    async with aiohttp.ClientSession(base, headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        yield session
