"""Queries against a small real server that speaks the API of Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from autoscaler.policy import State as PolicyState
from packer.inventory import Inventory
from tangram.control.measure import external
from tangram.control.prometheus import MAX_BYTES, Prometheus
from tangram.control.state import ControllerState, ModelState
from tangram.core.demand import DemandTracker
from tangram.spec import Fleet, Model, PrometheusSpec

QUERY = 'sum(vllm:num_requests_waiting{model="digits"})'


def vector(*values: object) -> dict[str, Any]:
    series = [{"metric": {"n": str(i)}, "value": [1.5, v]} for i, v in enumerate(values)]
    return {"status": "success", "data": {"resultType": "vector", "result": series}}


class Server:
    """Answers what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = vector("12.5")
        self.status = 200
        self.asked: list[tuple[str, str]] = []
        self.now = self.most = 0
        self.hold: asyncio.Event | None = None

    async def query(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.asked.append((str(form["query"]), request.headers.get("Authorization", "")))
        self.now += 1
        self.most = max(self.most, self.now)
        if self.hold is not None:
            await self.hold.wait()
        self.now -= 1
        if isinstance(self.answer, str):
            return web.Response(text=self.answer, status=self.status)
        return web.json_response(self.answer, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/api/v1/query", made.query)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield made
    if made.hold is not None:
        made.hold.set()
    await runner.cleanup()


def a_model(name: str = "digits", query: str = QUERY) -> Model:
    metric = {"type": "prometheus", "name": "waiting", "query": query, "target": 4}
    return Model.model_validate(
        {
            "metadata": {"name": name},
            "spec": {
                "runtime": {"model": "/m.py"},
                "slice": {"memory": {"request": "100Mi"}},
                "scaling": {"maxReplicas": 9, "metrics": [metric]},
            },
        }
    )


def state_of(url: str, *models: Model, **terms: Any) -> ControllerState:
    device = {"name": "gpu-0", "memory": "1Gi", "cores": 1}
    spec = {"nodes": [{"name": "n", "devices": [device]}], "prometheus": {"url": url, **terms}}
    fleet = Fleet.model_validate({"metadata": {"name": "test"}, "spec": spec})
    entries = {m.name: ModelState(m, 0.0, PolicyState.initial(0.0)) for m in models}
    return ControllerState(Inventory((), ()), fleet, DemandTracker(0.0), models=entries)


async def asked(state: ControllerState, model: str = "digits", later: float = 0.0) -> Any:
    """Ask once; what the autoscaler is then shown, so many seconds later."""
    poller = Prometheus(state)
    assert state.fleet is not None and state.fleet.spec.prometheus is not None
    terms: PrometheusSpec = state.fleet.spec.prometheus
    async with aiohttp.ClientSession() as session:
        await poller.ask(
            session, terms, {m.query for e in state.models.values() for m in e.model.spec.scaling.metrics if m.query}
        )
    (seen,) = external(state, state.models[model].model, asyncio.get_running_loop().time() + later)
    return seen


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (vector("12.5"), 12.5),
        (vector("0"), 0.0),
        ({"status": "success", "data": {"resultType": "scalar", "result": [1.5, "3"]}}, 3.0),
    ],
)
async def test_one_number_is_an_answer(server: Any, answer: Any, value: float) -> None:
    server.answer = answer
    assert (await asked(state_of(server.url, a_model()))).value == value
    assert server.asked == [(QUERY, "")]


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (200, vector(), "the query finds no series"),
        (200, vector("1", "2"), "the query finds 2 series; aggregate them"),
        (200, vector("NaN"), "the query gives nan"),
        (200, vector("+Inf"), "the query gives inf"),
        (200, vector(None), "holds no number"),
        (200, vector(10**400), "holds no number"),
        (200, {"status": "success", "data": {"resultType": "matrix", "result": []}}, "gives a matrix, not a number"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [7]}}, "gives nan"),
        (400, {"status": "error", "errorType": "bad_data", "error": "parse error at char 3"}, "400: parse error"),
        (503, "Service Unavailable", "status 503, and no JSON; is http"),
        (200, "[" * 100_000, "no JSON"),
        (200, "[]", "no success"),
        (200, '"' + "x" * (MAX_BYTES + 1) + '"', "longer than"),
        (302, {}, "status 302"),
    ],
)
async def test_all_else_is_missing_and_says_why(server: Any, status: int, answer: Any, why: str) -> None:
    server.status, server.answer = status, answer
    seen = await asked(state_of(server.url, a_model()))
    assert seen.value is None
    assert why in seen.note


async def test_a_server_that_does_not_answer_is_not_waited_for(server: Any) -> None:
    server.hold = asyncio.Event()
    seen = await asked(state_of(server.url, a_model(), timeoutSeconds=0.2))
    assert (seen.value, seen.note) == (None, "Prometheus gives no answer: nothing came within 0.2 s")


async def test_nobody_there_is_said(server: Any) -> None:
    seen = await asked(state_of("http://127.0.0.1:1", a_model()))
    assert seen.value is None
    assert seen.note == "Prometheus gives no answer: cannot connect to 127.0.0.1:1: Connection refused"


async def test_the_last_answer_is_good_for_three_periods(server: Any) -> None:
    state = state_of(server.url, a_model(), periodSeconds=10)
    await asked(state)
    server.status, server.answer = 500, "no"
    assert (await asked(state, later=29.0)).value == 12.5
    seen = await asked(state, later=31.0)
    assert seen.value is None
    assert "no answer for 31 s: status 500" in seen.note


async def test_a_query_of_many_models_is_asked_once_and_few_at_a_time(server: Any) -> None:
    models = [a_model(f"m{i}", QUERY if i < 5 else f"q{i}") for i in range(20)]
    state = state_of(server.url, *models)
    await asked(state, "m0")
    assert len(server.asked) == 16
    assert server.most <= 4


async def test_a_token_is_read_each_time(server: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    state = state_of(server.url, a_model(), bearerTokenFile=str(file))
    await asked(state)
    file.write_text("second")
    await asked(state)
    assert [auth for _, auth in server.asked] == ["Bearer first", "Bearer second"]
    file.unlink()
    server.answer = vector()
    state.answers.clear()
    assert "bearerTokenFile" in (await asked(state)).note


async def test_it_follows_what_is_declared(server: Any) -> None:
    state = state_of(server.url, a_model(), periodSeconds=3600)
    task = asyncio.create_task(Prometheus(state).run())

    async def until(look: Callable[[], bool]) -> None:
        for _ in range(1000):
            if look():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("not within 20 s")

    try:
        await until(lambda: QUERY in state.answers)
        state.models["more"] = ModelState(a_model("more", "more"), 0.0, PolicyState.initial(0.0))
        await until(lambda: "more" in state.answers)
        del state.models["digits"]
        state.models["last"] = ModelState(a_model("last", "last"), 0.0, PolicyState.initial(0.0))
        await until(lambda: state.answers.keys() == {"more", "last"})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
