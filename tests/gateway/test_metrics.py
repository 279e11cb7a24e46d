from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import METRICS, WorkerCollector, registry, render


def post(target: str, body: bytes = b"{}") -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def scrape(gateway):
    source = registry(
        WorkerCollector(
            gateway.dispatcher,
            connections=gateway.pools.counts,
            clients=lambda: gateway.front.clients,
            connected=lambda: True,
            ready=lambda: True,
            now=lambda: 0.0,
        )
    )

    def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        families = text_string_to_metric_families(render(source).decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}

    return samples


async def test_requests_are_counted_where_they_went(gateway, replica, scrape):
    gateway.model("m", await replica())
    for _ in range(3):
        await gateway.ask(post("/v2/models/m/infer"))
    found = scrape()
    assert found["gateway_requests_total", (("code", "200"), ("model", "m"))] == 3
    assert found["gateway_request_duration_seconds_count", (("model", "m"),)] == 3
    assert found["gateway_request_duration_seconds_bucket", (("le", "+Inf"), ("model", "m"))] == 3
    assert found["gateway_inflight_requests", (("model", "m"), ("replica", "m-0"))] == 0
    assert found["gateway_queued_requests", (("model", "m"),)] == 0
    assert found["gateway_upstream_connections", (("replica", "m-0"), ("state", "idle"))] == 1
    assert found["gateway_controller_connected", ()] == 1
    assert found["gateway_table_number", ()] == 1


async def test_unknown_models_make_no_series(gateway, replica, scrape):
    gateway.model("m", await replica())
    await gateway.ask(post("/v2/models/other/infer"))
    before = set(scrape())
    for n in range(50):
        await gateway.ask(post(f"/v2/models/x{n}/infer"))
        await gateway.ask(post("/v1/completions", b'{"model":"y%d"}' % n))
    found = scrape()
    assert set(found) == before
    assert found["gateway_requests_total", (("code", "404"), ("model", ""))] == 101


async def test_all_that_is_exported_is_declared(gateway, replica, scrape):
    gateway.model("m", await replica())
    await gateway.ask(post("/v2/models/m/infer"))
    declared = {name: set(labels) for name, _, labels, _ in METRICS}
    for name, labels in scrape():
        if name.startswith("process_"):
            continue
        family = next(n for n in (name, name.rsplit("_", 1)[0]) if n in declared)
        assert {k for k, _ in labels} - {"le"} == declared[family]
