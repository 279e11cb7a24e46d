from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tangram.control.metrics import METRICS, join, render, stranded_mib

WORKER = """\
# HELP gateway_requests_total Requests answered.
# TYPE gateway_requests_total counter
gateway_requests_total{model="digits",code="200"} 12
gateway_requests_total{model="a \\"b\\" } c",code="200",} 1
# HELP gateway_request_duration_seconds Time to answer.
# TYPE gateway_request_duration_seconds histogram
gateway_request_duration_seconds_bucket{model="digits",le="+Inf"} 12
gateway_request_duration_seconds_sum{model="digits"} 0.5
gateway_request_duration_seconds_count{model="digits"} 12
# HELP gateway_uptime_seconds Age.
# TYPE gateway_uptime_seconds gauge
gateway_uptime_seconds 7.5
"""


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Each sample by name and labels; the parser refuses a family given twice or lines that are not samples."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(page: str, name: str, **labels: str) -> float | None:
    return samples(page).get((name, frozenset(labels.items())))


def test_the_controllers_figures(facade: Any) -> None:
    page = render(facade, {})
    assert value(page, "autoscaler_desired_replicas", model="digits") == 3
    assert value(page, "autoscaler_signal_replicas", model="digits", signal="cpu") == 2
    mib = 1024 * 1024
    kinds = {k: value(page, "packer_device_memory_bytes", device="node-a/gpu-0", kind=k) for k in ("total", "used")}
    assert kinds == {"total": 1024 * mib, "used": pytest.approx(61.3 * mib)}
    assert value(page, "packer_stranded_memory_bytes", device="node-a/gpu-0") == 0
    assert value(page, "packer_oversold_devices") == 0


def test_all_that_is_exported_is_listed_and_nothing_is_global(facade: Any) -> None:
    page = render(facade, {0: None})
    exported = {f.name: f.type for f in text_string_to_metric_families(page)}
    assert exported == {name: type_ for name, type_, _, _ in METRICS}
    labels = {name: set(labels) for name, _, labels, _ in METRICS}
    for name, given in samples(page):
        assert {label for label, _ in given} == labels[name]
    assert not {f.name for f in REGISTRY.collect()} & set(exported)


def test_workers_are_told_apart_and_each_family_is_given_once(facade: Any) -> None:
    page = render(facade, {0: WORKER, 1: WORKER.replace(" 12\n", " 5\n"), 2: None})
    assert page.count("# TYPE gateway_requests_total counter") == 1
    assert value(page, "gateway_requests_total", model="digits", code="200", worker="0") == 12
    assert value(page, "gateway_requests_total", model="digits", code="200", worker="1") == 5
    assert value(page, "gateway_requests_total", model='a "b" } c', code="200", worker="0") == 1
    assert value(page, "gateway_uptime_seconds", worker="1") == 7.5
    assert value(page, "gateway_request_duration_seconds_bucket", model="digits", le="+Inf", worker="1") == 5
    assert [value(page, "gateway_worker_up", worker=w) for w in "012"] == [1, 1, 0]


def test_what_a_worker_should_not_send_is_left_out() -> None:
    page = join("own 1\n", {0: 'a{b="c" 1\n<html>\n\nb 2\n# a comment\n# TYPE\nc{} 3'})
    assert page == 'own 1\nb{worker="0"} 2\nc{worker="0"} 3\n'


def test_memory_is_stranded_when_no_model_could_use_it(fakes: Any) -> None:
    models = fakes.parse_documents([fakes.model_document()]).models  # 128 MiB, 20%
    assert stranded_mib(fakes.a_device(), models) == 0
    assert stranded_mib(fakes.a_device(compute_requested=90), models) == 872
    assert stranded_mib(fakes.a_device(memory_requested=900), models) == 100
    assert stranded_mib(fakes.a_device(clients=48), models) == 872
    assert stranded_mib(fakes.a_device(healthy=False), models) == 872
    assert stranded_mib(fakes.a_device(mechanisms=("mps",)), models) == 872
    assert stranded_mib(fakes.a_device(memory_requested=1000), models) == 0
    assert stranded_mib(fakes.a_device(), []) == 872


@pytest.fixture
async def worker() -> AsyncIterator[str]:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text=WORKER)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    await runner.cleanup()


async def test_the_admin_port_joins_its_workers(
    client: aiohttp.ClientSession, facade: Any, worker: str, unused_tcp_port: int
) -> None:
    facade.worker_urls = [(0, worker), (1, f"http://127.0.0.1:{unused_tcp_port}/metrics")]
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        page = await response.text()
    assert value(page, "gateway_requests_total", model="digits", code="200", worker="0") == 12
    assert [value(page, "gateway_worker_up", worker=w) for w in "01"] == [1, 0]
    assert value(page, "autoscaler_desired_replicas", model="digits") == 3


def test_memory_is_stranded_beside_a_slice_when_models_take_whole_devices(fakes: Any) -> None:
    document = fakes.model_document()
    document["spec"]["slice"] = {"memory": {"request": "128Mi"}, "devices": 2}
    models = [fakes.parse_documents([document]).models[0]]
    assert stranded_mib(fakes.a_device(), models) == 872
    assert stranded_mib(fakes.a_device(clients=0, memory_requested=0, compute_requested=0), models) == 0
