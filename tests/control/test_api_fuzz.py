"""No input makes the API fail: whatever is sent, the answer is a view or an ErrorView below 500."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from tangram.control.api import make_app
from tangram.control.openapi import OPERATIONS
from tangram.control.views import ErrorView

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e999999999", "-1Mi", "9Ei", "auto", "Model", "1e-99999999", "\ud800", "٣", "0x10"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ANYTHING = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def ask(fakes: ModuleType) -> Iterator[Callable[..., int]]:
    """Sends a request and holds the answer to the rule; its status."""
    facade = fakes.FakeFacade()
    facade.specs_by_name["digits"] = fakes.parse_documents([fakes.model_document()]).models[0]

    with asyncio.Runner() as loop:

        async def start() -> tuple[web.AppRunner, aiohttp.ClientSession]:
            runner = web.AppRunner(make_app(facade, "t"), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return runner, aiohttp.ClientSession(headers={"Authorization": "Bearer t"})

        runner, session = loop.run(start())
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def send(method: str, path: str, **options: Any) -> int:
            async with session.request(method, URL(base + path, encoded=True), **options) as response:
                content = await response.read()
                assert response.status < 500, content
                if response.status >= 400:
                    ErrorView.model_validate_json(content)
                return response.status

        yield lambda *arguments, **options: loop.run(send(*arguments, **options))
        loop.run(session.close())
        loop.run(runner.cleanup())


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in ((node, key), *places(node[key]))]


@pytest.fixture(scope="module")
def full(fakes: ModuleType) -> dict[str, Any]:
    """A Model document with every field there is."""
    model = fakes.parse_documents([fakes.model_document(metrics=[{"type": "cpu", "target": 70}])]).models[0]
    document: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True))
    return document


@ANYTHING
@given(data=st.data(), value=JSON)
def test_documents(ask: Callable[..., int], full: dict[str, Any], data: st.DataObject, value: Any) -> None:
    document = copy.deepcopy(full)
    container, key = data.draw(st.sampled_from(places(document)))
    container[key] = value
    body = json.dumps({"documents": [document], "dryRun": True})
    assert ask("POST", "/api/v1alpha1/apply", data=body, headers={"Content-Type": "application/json"}) in (
        200,
        400,
        422,
    )


@ANYTHING
@given(body=JSON | st.fixed_dictionaries({}, optional={"documents": JSON, "dryRun": JSON}))
def test_bodies(ask: Callable[..., int], body: Any) -> None:
    headers = {"Content-Type": "application/json"}
    assert ask("POST", "/api/v1alpha1/apply", data=json.dumps(body), headers=headers) in (200, 400, 422)


@ANYTHING
@given(
    body=st.dictionaries(
        st.sampled_from(["replicas", "targetQPS", "minReplicas", "maxReplicas", "x"]), JSON, max_size=3
    )
)
def test_scaling(ask: Callable[..., int], body: Any) -> None:
    headers = {"Content-Type": "application/json"}
    status = ask("PATCH", "/api/v1alpha1/models/digits/scale", data=json.dumps(body), headers=headers)
    assert status in (200, 400, 422)


RAW = st.text("abc-%2fF0.~:;=&?+/\\", max_size=12)


@ANYTHING
@given(name=RAW.filter(lambda t: "?" not in t), query=RAW, index=st.integers(0, len(OPERATIONS) - 1))
def test_addresses(ask: Callable[..., int], name: str, query: str, index: int) -> None:
    operation = OPERATIONS[index]
    if operation.method != "GET":
        return
    known = "&".join(f"{p.name}={query}" for p in operation.query)
    ask("GET", operation.path.replace("{name}", name or "-") + f"?{query}&{known}")
