from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tangram.control.openapi import OPERATIONS
from tangram.control.security import MAX_BODY
from tangram.control.views import ErrorView

V1 = "/api/v1alpha1"
TOKEN = "a-token-of-the-tests"
Client = aiohttp.ClientSession


async def get(client: Client, path: str) -> Any:
    async with client.get(V1 + path) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def error(response: aiohttp.ClientResponse) -> ErrorView:
    """The body as the error that every answer of 400 and above is."""
    assert response.status >= 400
    assert response.content_type == "application/json"
    return ErrorView.model_validate_json(await response.read())


async def raw(base: str, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to exactly these bytes."""
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        return head, body
    finally:
        writer.close()


async def test_reads_show_the_facade(client: Client) -> None:
    assert (await get(client, "/status"))["term"] == 3
    assert [m["name"] for m in (await get(client, "/models"))["items"]] == ["digits"]
    model = await get(client, "/models/digits")
    assert (model["targetQPS"], model["minReplicas"]) == (20, 1)
    assert (await get(client, "/models/digits/describe"))["spec"]["spec"]["slice"]["memory"]["request"] == "128Mi"
    assert (await get(client, "/models/digits/explain"))["latest"]["signal"] == "qps"
    assert (await get(client, "/models/digits/spec"))["metadata"]["name"] == "digits"
    assert [r["name"] for r in (await get(client, "/replicas?model=digits"))["items"]] == ["digits-7f3a1"]
    assert [d["id"] for d in (await get(client, "/devices"))["items"]] == ["node-a/gpu-0"]
    assert [d["id"] for d in (await get(client, "/decisions?limit=1"))["items"]] == [7]
    assert (await get(client, "/events?model=digits"))["items"] == []


async def test_a_spec_that_was_read_can_be_applied_again(client: Client) -> None:
    spec = await get(client, "/models/digits/spec")
    async with client.post(f"{V1}/apply", json={"documents": [spec]}) as response:
        assert (await response.json())["applied"] == [{"kind": "Model", "name": "digits", "change": "unchanged"}]


async def test_apply_scale_delete(client: Client, facade: Any, fakes: Any) -> None:
    async with client.post(f"{V1}/apply", json={"documents": [fakes.model_document("faces")]}) as response:
        assert (await response.json())["applied"][0]["change"] == "created"
    change = {"targetQPS": 5, "maxReplicas": 9, "replicas": 3}
    async with client.patch(f"{V1}/models/faces/scale", json=change) as response:
        assert response.status == 200
    scaling = facade.specs_by_name["faces"].spec.scaling
    assert (scaling.target_qps, scaling.max_replicas, scaling.min_replicas, scaling.replicas) == (5, 9, 1, 3)
    async with client.patch(f"{V1}/models/faces/scale", json={"replicas": "auto"}) as response:
        assert (await response.json())["fixedReplicas"] is None
    async with client.delete(f"{V1}/models/faces") as response:
        assert response.status == 204
    assert sorted(facade.specs_by_name) == ["digits"]


async def test_a_dry_run_changes_nothing(client: Client, facade: Any, fakes: Any) -> None:
    body = {"documents": [fakes.model_document("faces")], "dryRun": True}
    async with client.post(f"{V1}/apply", json=body) as response:
        assert (await response.json())["applied"][0]["change"] == "created"
    assert "faces" not in facade.specs_by_name


async def test_refused_documents_tell_each_problem(client: Client, facade: Any, fakes: Any) -> None:
    document = fakes.model_document("faces", minReplicas=9, colour="blue")
    async with client.post(f"{V1}/apply", json={"documents": [document, {"kind": "Modell"}]}) as response:
        refused = await error(response)
        assert response.status == 422
    assert any("spec.scaling.colour" in d for d in refused.details)
    assert any("'Modell' is not known; write Model or Fleet" in d for d in refused.details)
    assert sorted(facade.specs_by_name) == ["digits"]


async def test_scaling_that_would_not_be_valid_is_refused(client: Client, facade: Any) -> None:
    before = facade.specs_by_name["digits"]
    for body in (
        {"minReplicas": 9},
        {"replicas": -1},
        {"maxReplicas": 0},
        {"colour": "blue"},
        {"replicas": 10**30},
        {"replicas": "many"},
        {},
    ):
        async with client.patch(f"{V1}/models/digits/scale", json=body) as response:
            await error(response)
            assert response.status == 422, body
    assert facade.specs_by_name["digits"] == before


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_writes_take_json_alone(client: Client, facade: Any, content_type: str | None) -> None:
    # A form can be posted to another origin by any page; a JSON body cannot.
    headers = {"Content-Type": content_type} if content_type else {}
    async with client.patch(f"{V1}/models/digits/scale", data=b'{"replicas": 3}', headers=headers) as response:
        await error(response)
        assert response.status == 415
    assert facade.specs_by_name["digits"].spec.scaling.replicas is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"documents": [{"kind": "\\ud800"}]}', b'{"documents": "a'.ljust(9999)],
)
async def test_a_body_that_is_not_json_is_malformed(client: Client, body: bytes) -> None:
    async with client.post(f"{V1}/apply", data=body, headers={"Content-Type": "application/json"}) as response:
        refused = await error(response)
        assert response.status == 400
    assert refused.error.startswith("the body is not JSON")
    assert len(refused.error) < 300


async def test_a_large_body_is_refused(client: Client) -> None:
    body = io.BytesIO(json.dumps({"documents": [{"kind": "x" * MAX_BODY}]}).encode())
    async with client.post(f"{V1}/apply", data=body, headers={"Content-Type": "application/json"}) as response:
        await error(response)
        assert response.status == 413


@pytest.mark.parametrize("name", ["missing", "UPPER", "a..b", "..%2f..%2fetc%2fpasswd", "%00", "%ff", "a" * 300, "-a"])
async def test_what_is_not_there_is_not_found(base: str, name: str) -> None:
    paths = [f"/models/{name}", f"/models/{name}/describe", f"/models/{name}/explain", f"/models/{name}/spec"]
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for path in [*paths, f"/replicas/{name}/logs"]:
            async with client.get(URL(f"{base}{V1}{path}", encoded=True)) as response:
                assert (await error(response)).error
                assert response.status == 404, path


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("/decisions?limit=0", "limit: '0' is not a whole number from 1 to 1000"),
        ("/decisions?limit=x", "limit: 'x'"),
        ("/events?limit=1&limit=2", "limit: given 2 times; give it once"),
        ("/replicas?model=UPPER", "model: 'UPPER' is not a name"),
        ("/replicas/digits-7f3a1/logs?tail=-1", "tail: '-1'"),
        ("/replicas/digits-7f3a1/logs?follow=yes", "follow: 'yes' is not a boolean; write true or false"),
    ],
)
async def test_a_bad_parameter_is_named(client: Client, query: str, named: str) -> None:
    async with client.get(V1 + query) as response:
        assert named in (await error(response)).error
        assert response.status == 400


async def test_unknown_parameters_are_ignored(client: Client) -> None:
    assert await get(client, "/models?colour=blue")


async def test_unknown_paths_and_methods(client: Client) -> None:
    async with client.get(f"{V1}/colours") as response:
        assert "/openapi.json" in (await error(response)).error
        assert response.status == 404
    async with client.put(f"{V1}/models") as response:
        await error(response)
        assert (response.status, response.headers["Allow"]) == (405, "GET")


async def test_a_fault_of_ours_is_told_without_its_inside(client: Client, facade: Any) -> None:
    facade.fails = True
    async with client.get(f"{V1}/models") as response:
        assert "fault" not in (await error(response)).error
        assert response.status == 500
    facade.fails = False
    assert await get(client, "/models")


async def test_without_the_token_nothing_is_shown_or_done(base: str, facade: Any) -> None:
    async with aiohttp.ClientSession(base) as stranger:
        for operation in OPERATIONS:
            path = operation.path.replace("{name}", "digits")
            async with stranger.request(operation.method, path, json={"replicas": 4}) as response:
                assert response.status == (200 if operation.open or path == "/metrics" else 401), operation.id
                assert "Access-Control-Allow-Origin" not in response.headers
                if response.status == 401:
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                    assert "admin.token" in (await error(response)).error
        async with stranger.get(f"{V1}/colours") as response:
            assert response.status == 401
    assert "digits" in facade.specs_by_name
    assert facade.specs_by_name["digits"].spec.scaling.replicas is None


async def test_a_foreign_host_is_refused(client: Client) -> None:
    for path in (f"{V1}/models", "/metrics", "/healthz"):
        async with client.get(path, headers={"Host": "evil.example"}) as response:
            assert "'evil.example' is not an address of this API" in (await error(response)).error
            assert response.status == 403


async def test_no_host_is_malformed(base: str) -> None:
    head, body = await raw(base, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert ErrorView.model_validate_json(body).error.startswith("Host:")


async def test_bytes_that_are_not_text_are_refused_with_an_error_that_is(base: str) -> None:
    close = b"Connection: close\r\n\r\n"
    for request in (
        b"GET /healthz HTTP/1.1\r\nHost: \xff\xfe\r\n" + close,
        b"GET /api/v1alpha1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n" + close,
    ):
        head, body = await raw(base, request)
        assert b" 40" in head.splitlines()[0]
        assert ErrorView.model_validate_json(body).error


async def test_a_body_may_be_announced(base: str) -> None:
    body = b'{"replicas": 2}'
    request = (
        b"PATCH /api/v1alpha1/models/digits/scale HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Authorization: Bearer " + TOKEN.encode() + b"\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nExpect: %s\r\n\r\n%s"
    )
    head, answer = await raw(base, request % (len(body), b"100-continue", body))
    assert head == b"HTTP/1.1 100 Continue"
    assert answer.startswith(b"HTTP/1.1 200")
    head, answer = await raw(base, request % (len(body), b"tea", body))
    assert head.startswith(b"HTTP/1.1 417")
    assert "'tea'" in ErrorView.model_validate_json(answer).error


async def test_health_and_readiness(base: str, facade: Any) -> None:
    async with aiohttp.ClientSession(base) as probe:
        async with probe.get("/readyz") as response:
            assert response.status == 200
        facade.adopting = True
        async with probe.get("/readyz") as response:
            await error(response)
            assert response.status == 503
        async with probe.get("/healthz") as response:
            assert response.status == 200


async def test_the_end_of_a_log(client: Client, tmp_path: Path) -> None:
    (tmp_path / "digits-7f3a1.log").write_text("one\ntwo\nthree\n")
    async with client.get(f"{V1}/replicas/digits-7f3a1/logs?tail=2") as response:
        assert (response.content_type, response.charset) == ("text/plain", "utf-8")
        assert await response.text() == "two\nthree\n"


async def test_a_replica_that_wrote_nothing_yet(client: Client) -> None:
    async with client.get(f"{V1}/replicas/digits-7f3a1/logs") as response:
        assert response.status in (200, 404)
        assert "digits-7f3a1" in await response.text() or response.status == 200


async def test_a_log_is_followed_until_the_replica_is_gone(client: Client, facade: Any, tmp_path: Path) -> None:
    log = tmp_path / "digits-7f3a1.log"
    log.write_text("one\n")
    async with client.get(f"{V1}/replicas/digits-7f3a1/logs?follow=true&tail=10") as response:
        assert await asyncio.wait_for(response.content.readline(), 10) == b"one\n"
        with log.open("a") as file:
            file.write("two\n")
        assert await asyncio.wait_for(response.content.readline(), 10) == b"two\n"
        facade.replica_views.clear()
        assert await asyncio.wait_for(response.content.read(), 10) == b""


async def test_followers_do_not_delay_a_stop(facade: Any, tmp_path: Path) -> None:
    from aiohttp import web

    from tangram.control.api import make_app

    (tmp_path / "digits-7f3a1.log").write_text("one\n")
    runner = web.AppRunner(make_app(facade, "t"), access_log=None, shutdown_timeout=60)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}{V1}/replicas/digits-7f3a1/logs?follow=true"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer t"}) as client, client.get(url) as response:
        await response.content.readline()
        await asyncio.wait_for(runner.cleanup(), 20)
