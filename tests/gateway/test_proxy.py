"""The full path through real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
INFER = "/v2/models/m/infer"


def post(target: str, body: bytes = b"{}", *fields: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: gw", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: gw", *fields]).encode() + b"\r\n\r\n"


# --- what goes through ---


async def test_path_query_and_body_are_forwarded_unchanged(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    answer = await gateway.ask(post(INFER + "?a=%2F&b", b"\x00\xffbinary", "Inference-Header-Content-Length: 3"))
    assert (answer.status, answer.body) == (200, b"\x00\xffbinary")
    seen = one.seen[0]
    assert (seen.method, seen.target) == ("POST", INFER + "?a=%2F&b")
    assert seen["Inference-Header-Content-Length"] == "3"
    assert seen["Host"] == "gw"


async def test_the_generic_route_strips_its_prefix(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    assert (await gateway.ask(post("/models/m/any/path?q=1"))).status == 200
    assert (await gateway.ask(get("/models/m?q=1"))).status == 200
    assert [s.target for s in one.seen] == ["/any/path?q=1", "/?q=1"]


async def test_the_openai_route_finds_the_model_in_the_body(gateway, replica):
    one, other = await replica(), await replica()
    gateway.model("m", one)
    gateway.model("other", other)
    body = json.dumps({"messages": [{"content": '"model": "other"'}], "model": "m"}).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert (await gateway.ask(post("/v1/chat/completions", body))).body == body
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert (await gateway.ask(head + chunked)).body == body
    assert len(one.seen) == 2
    assert not other.seen


async def test_connection_fields_are_dropped_both_ways_and_framing_is_our_own(gateway, replica, kit):
    one = await replica(
        kit.fixed(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nUpgrade: h2c\r\n"
            b"Proxy-Authenticate: x\r\nX-Stays: 1\r\nX-Request-Id: theirs\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nok\r\n0\r\n\r\n"
        )
    )
    gateway.model("m", one)
    answer = await gateway.ask(
        post(
            INFER,
            b"{}",
            "Connection: close, X-Secret, Content-Length",
            "X-Secret: 1",
            "TE: gzip",
            "Keep-Alive: timeout=1",
            "Proxy-Authorization: x",
            "Upgrade: h2c",
            "X-Stays: 1",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "X-Request-Id: mine-1",
        )
    )
    seen = one.seen[0]
    names = {n.lower() for n, _ in seen.headers}
    assert not names & {"connection", "x-secret", "te", "keep-alive", "proxy-authorization", "upgrade"}
    assert seen["Content-Length"] == "2"
    assert seen["X-Stays"] == "1"
    assert seen["traceparent"] == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert seen["X-Request-Id"] == answer["X-Request-Id"] == "mine-1"
    back = {n.lower() for n, _ in answer.headers}
    assert not back & {"x-hop", "keep-alive", "upgrade", "proxy-authenticate"}
    assert answer["X-Stays"] == "1"
    assert answer["Connection"] == "close"
    assert answer.body == b"ok"


async def test_a_clients_word_on_its_address_is_not_believed(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    await gateway.ask(
        post(INFER, b"{}", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6")
    )
    seen = one.seen[0]
    assert seen["X-Forwarded-For"] == "127.0.0.1"
    assert seen["X-Forwarded-Proto"] == "http"
    assert not seen.all("Forwarded")


async def test_every_answer_has_a_request_id_and_a_mad_one_is_replaced(gateway, replica):
    gateway.model("m", await replica())
    for request in (post(INFER), post("/v2/models/none/infer"), get("/v1/models"), get("/nowhere"), b"BAD /\r\n\r\n"):
        answer = await gateway.ask(request)
        assert len(answer["X-Request-Id"]) == 32
    mad = "x" * 200
    assert (await gateway.ask(post(INFER, b"{}", f"X-Request-Id: {mad}")))["X-Request-Id"] != mad


async def test_server_timing_says_where_the_time_went(gateway, replica):
    gateway.model("m", await replica())
    timing = (await gateway.ask(post(INFER)))["Server-Timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["queue", "start", "upstream"]


async def test_an_absolute_target_is_forwarded_in_origin_form_with_its_authority_as_host(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    answer = await gateway.ask(get(f"http://other.example:81{INFER}?x=1"))
    assert answer.status == 200
    assert (one.seen[0].target, one.seen[0]["Host"]) == (INFER + "?x=1", "other.example:81")


@pytest.mark.parametrize("target", ["/models/m/../n/x", "/models/m/%2e%2E/x", "/models/m/a#b", "ftp://x/y"])
async def test_targets_that_could_mean_two_things_are_refused(gateway, replica, target):
    one = await replica()
    gateway.model("m", one)
    assert (await gateway.ask(get(target))).status == 400
    assert not one.seen


async def test_encoded_bodies_stay_encoded(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    body = b"\x1f\x8bnot really gzip"
    assert (await gateway.ask(post(INFER, body, "Content-Encoding: gzip"))).body == body


# --- shapes of responses ---


async def test_head_204_and_304_have_no_body_and_leave_the_connection_usable(gateway, replica, kit):
    async def answer(seen, writer, reader):
        if seen.method == "HEAD":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
        elif "204" in seen.target:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        elif "304" in seen.target:
            writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n')
        else:
            writer.write(OK)

    one = await replica(answer)
    gateway.model("m", one)
    client = await gateway.client()
    head = await client.ask(get("/models/m/x", method="HEAD"))
    assert (head.status, head["Content-Length"], head.body) == (200, "99", b"")
    assert (await client.ask(get("/models/m/204"))).status == 204
    assert (await client.ask(get("/models/m/304")))["ETag"] == '"a"'
    assert (await client.ask(get("/models/m/x"))).body == b"ok"
    assert one.connections == 1


async def test_informational_responses_pass_and_100_is_our_own(gateway, replica, kit):
    one = await replica(kit.fixed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK))
    gateway.model("m", one)
    answer = await gateway.ask(get("/models/m/x"))
    assert (answer.status, answer.informational, answer.body) == (200, [103], b"ok")


async def test_a_body_that_ends_with_the_connection_arrives_chunked(gateway, replica, kit):
    gateway.model("m", await replica(kit.fixed(b"HTTP/1.1 200 OK\r\n\r\nall of it", "close")))
    answer = await gateway.ask(get("/models/m/x"))
    assert answer.body == b"all of it"
    assert answer["Transfer-Encoding"] == "chunked"


async def test_an_old_client_gets_a_body_that_ends_with_the_connection(gateway, replica, kit):
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    gateway.model("m", await replica(kit.fixed(response)))
    answer = await gateway.ask(b"GET /models/m/x HTTP/1.0\r\n\r\n")
    assert answer.body == b"ok"
    assert not answer.all("Transfer-Encoding")


async def test_trailers_reach_those_who_ask_for_them(gateway, replica, kit):
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    one = await replica(kit.fixed(response))
    gateway.model("m", one)
    asked = await gateway.ask(get("/models/m/x", "TE: trailers", "Connection: TE"))
    assert asked.trailers == [("X-Sum", "1")]
    assert one.seen[0]["TE"] == "trailers"
    assert (await gateway.ask(get("/models/m/x"))).trailers == []


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"this is not HTTP\r\n\r\n",
    ],
)
async def test_responses_that_can_be_read_in_two_ways_give_502(gateway, replica, kit, response):
    gateway.model("m", await replica(kit.fixed(response, "close")), retry_attempts=0)
    answer = await gateway.ask(post(INFER))
    assert answer.status == 502
    assert "error" in json.loads(answer.body)
    assert gateway.meter().codes == {502: 1}


@pytest.mark.parametrize(
    ("response", "word"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "close"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "close"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "reset"),
    ],
)
async def test_half_an_answer_never_looks_whole(gateway, replica, kit, response, word):
    gateway.model("m", await replica(kit.fixed(response, word)))
    client = await gateway.client()
    with pytest.raises(kit.Truncated):
        await client.ask(post(INFER))
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().errors == 1
    assert gateway.meter().completions == 0


async def test_half_an_answer_to_an_old_client_ends_in_a_reset(gateway, replica, kit):
    gateway.model("m", await replica(kit.fixed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "close")))
    client = await gateway.client()
    with pytest.raises((kit.Truncated, ConnectionError)):
        await client.ask(b"GET /models/m/x HTTP/1.0\r\n\r\n")


# --- streams ---


async def test_events_arrive_as_they_are_made(gateway, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
            await goes_on.wait()
            goes_on.clear()
        writer.write(b"0\r\n\r\n")

    gateway.model("m", await replica(answer), protocol="openai")
    client = await gateway.client()
    client.send(post("/v1/chat/completions", b'{"model":"m","stream":true}'))
    client.expect()
    assert (await client.event()).status_code == 200
    for n in range(3):
        assert (await client.event()).data == b"data: %d\n\n" % n
        goes_on.set()
    assert type(await client.event()).__name__ == "EndOfMessage"


async def test_an_upload_is_streamed_while_it_comes(gateway, replica, kit):
    got = asyncio.Event()

    async def answer(seen, writer, reader):
        assert await reader.readexactly(3) == b"one"
        got.set()
        assert await reader.readexactly(3) == b"two"
        writer.write(OK)

    gateway.model("m", await replica(answer, read_body=False))
    client = await gateway.client()
    client.send(post(INFER, b"")[:-4].replace(b"Length: 0", b"Length: 6") + b"\r\n\r\none")
    await asyncio.wait_for(got.wait(), 5)
    client.send(b"two")
    assert (await client.response()).body == b"ok"


async def test_chunked_uploads_stay_chunked(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    client.send(b"POST %s HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n" % INFER.encode())
    client.send(b"3\r\ntwo\r\n0\r\n\r\n")
    assert (await client.response()).body == b"onetwo"
    assert one.seen[0]["Transfer-Encoding"] == "chunked"


async def test_a_large_answer_waits_for_a_slow_reader(gateway, replica, kit):
    size = 64 * 1024 * 1024
    block = b"x" * 65536
    sent = 0

    async def answer(seen, writer, reader):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
            sent += len(block)

    gateway.model("m", await replica(answer))
    client = await gateway.client()
    client.send(get("/models/m/x"))
    before = -1
    while sent != before or not sent:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 24 * 1024 * 1024
    left = size
    await client.reader.readuntil(b"\r\n\r\n")
    while left:
        left -= len(await client.reader.read(2**20))
    await kit.until(lambda: gateway.quiet)


async def test_a_large_answer_waits_where_those_before_it_are_unread(gateway, replica):
    size = 48 * 1024 * 1024
    block = b"x" * 65536
    small = b"HTTP/1.1 200 OK\r\nContent-Length: 12000\r\n\r\n" + bytes(12_000)
    asked = answered = sent = 0

    async def answer(seen, writer, reader):
        nonlocal answered, sent
        if seen.target != "/large":
            answered += seen.target == "/small"
            writer.write(small)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            writer.write(block)
            await writer.drain()
            sent += len(block)

    one = await replica(answer)
    gateway.model("m", one)
    gateway.model("n", one)
    busy = True

    async def others() -> None:
        other = await gateway.client()
        while busy:
            await other.ask(get("/models/n/x"))

    # While others ask too, what is written waits for the end of its turn.
    tasks = [asyncio.create_task(others()) for _ in range(4)]
    client = await gateway.client()
    client.writer.transport.pause_reading()
    clock = asyncio.get_running_loop().time

    def unread() -> bool:
        lanes = [getattr(one, "lane", None) for one in gateway.front._server.connections]
        return any(lane is not None and lane.clogged for lane in lanes)

    while answered == asked and not unread():
        client.send(get("/models/m/small"))
        asked += 1
        end = clock() + 0.5
        settled = 0
        while settled < 5 and clock() < end:
            await asyncio.sleep(0)
            settled += answered == asked and gateway.meter().idle
    client.send(get("/models/m/large"))
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.2)
    busy = False
    await asyncio.gather(*tasks)
    assert sent < 24 * 1024 * 1024


async def test_a_large_upload_waits_for_a_slow_replica(gateway, replica, kit):
    size = 64 * 1024 * 1024
    reads = asyncio.Event()

    async def answer(seen, writer, reader):
        await reads.wait()
        left = size
        while left:
            left -= len(await reader.read(2**20))
        writer.write(OK)

    gateway.model("m", await replica(answer, read_body=False))
    client = await gateway.client()
    client.send(b"POST %s HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), size))
    block = b"x" * 65536
    taken = 0

    async def upload() -> None:
        nonlocal taken
        for _ in range(size // len(block)):
            client.send(block)
            await client.writer.drain()
            taken += len(block)

    task = asyncio.create_task(upload())
    before = -1
    while taken != before or not taken:
        before = taken
        await asyncio.sleep(0.1)
    assert taken < 24 * 1024 * 1024
    reads.set()
    await task
    assert (await client.response()).body == b"ok"


async def test_an_early_answer_reaches_a_client_that_is_still_uploading(gateway, replica, kit):
    response = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    gateway.model("m", await replica(kit.fixed(response, "close"), read_body=False))
    client = await gateway.client()
    client.send(b"POST %s HTTP/1.1\r\nHost: gw\r\nContent-Length: 4000000\r\n\r\n" % INFER.encode() + b"x" * 100_000)
    answer = await client.response()
    assert (answer.status, answer.body) == (413, b"big")
    client.send(b"x" * 3_900_000)
    await kit.until(lambda: gateway.quiet)
    client.leave()
    await kit.until(lambda: gateway.front.clients == 0, "the connection ends")


async def test_expect_100_continue(gateway, replica):
    gateway.model("m", await replica())
    client = await gateway.client()
    client.send(post(INFER, b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 4"))
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"body")
    assert (await client.response()).body == b"body"


async def test_a_refusal_needs_no_upload_from_a_client_that_expects_100(gateway):
    client = await gateway.client()
    client.send(post("/v2/models/none/infer", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 4"))
    answer = await client.response()
    assert (answer.status, answer.informational, answer["Connection"]) == (404, [], "close")


async def test_pipelined_requests_are_answered_in_order(gateway, replica):
    gateway.model("m", await replica())
    client = await gateway.client()
    client.send(post(INFER, b"1") + post(INFER, b"2") + post(INFER, b"3"))
    assert [(await client.response()).body for _ in range(3)] == [b"1", b"2", b"3"]


async def test_a_head_split_at_any_byte_works(gateway, replica):
    gateway.model("m", await replica())
    client = await gateway.client()
    request = post(INFER, b"body", "X-A: b")
    for cut in range(1, len(request), 3):
        client.send(request[:cut])
        await asyncio.sleep(0)
        await client.writer.drain()
        client.send(request[cut:])
        assert (await client.response()).body == b"body"


# --- errors ---


async def test_unknown_models_are_404_in_the_shape_of_the_protocol(gateway):
    gateway.model("m")
    oip = await gateway.ask(post("/v2/models/none/infer"))
    openai = await gateway.ask(post("/v1/completions", b'{"model":"none"}'))
    generic = await gateway.ask(get("/models/none/x"))
    assert {oip.status, openai.status, generic.status} == {404}
    assert json.loads(oip.body) == {"error": "model 'none' is not known here"}
    error = json.loads(openai.body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", None)
    assert "none" in error["message"]
    assert gateway.dispatcher.meter.unrouted == {404: 3}
    assert list(gateway.dispatcher.meter.models) == ["m"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model": 3}', b'{"model": ""}', b"\xff\xfe"])
async def test_a_body_without_a_model_is_400(gateway, body):
    answer = await gateway.ask(post("/v1/chat/completions", body))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


async def test_an_encoded_body_cannot_name_a_model_and_is_told_so(gateway):
    body = gzip.compress(b'{"model":"m"}')
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    answer = await gateway.ask(head % len(body) + body)
    assert answer.status == 415
    assert b"Content-Encoding" in answer.body


async def test_a_body_too_large_to_look_into_is_413(gateway):
    client = await gateway.client()
    client.send(b"POST /v1/completions HTTP/1.1\r\nHost: gw\r\nContent-Length: 99999999\r\n\r\n{")
    assert (await client.response()).status == 413
    chunked = await gateway.client()
    chunked.send(b"POST /v1/completions HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n%s\r\n" % (2**20, b" " * 2**20)
    for _ in range(17):
        chunked.send(chunk)
    assert (await chunked.response()).status == 413


async def test_what_is_not_http_is_400_and_never_forwarded(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    for request in (
        b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        b"POST %s HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
        b"POST %s HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST %s HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    ):
        answer = await gateway.ask(request % INFER.encode())
        assert answer.status == 400
        assert len(answer["X-Request-Id"]) == 32
    assert not one.seen


async def test_a_head_too_long_is_431(gateway):
    assert (await gateway.ask(get("/v2", "X: " + "x" * 20000))).status == 431


async def test_a_malformed_upload_is_400(gateway, replica, kit):
    gateway.model("m", await replica())
    client = await gateway.client()
    client.send(b"POST %s HTTP/1.1\r\nHost: gw\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n" % INFER.encode())
    await kit.until(lambda: gateway.meter().flight.value == 1)
    client.send(b"nonsense\r\n")
    assert (await client.response()).status == 400
    await kit.until(lambda: gateway.quiet)


# --- what the gateway answers itself ---


async def test_health_ready_and_lists_come_from_the_table(gateway, replica):
    one = await replica()
    assert (await gateway.ask(get("/v2/health/ready"))).status == 503
    gateway.model("asleep")
    gateway.model("m", one)
    assert (await gateway.ask(get("/v2/health/live"))).status == 200
    assert (await gateway.ask(get("/v2/health/ready"))).status == 200
    assert json.loads((await gateway.ask(get("/v2"))).body)["name"] == "tangram"
    assert (await gateway.ask(get("/v2/models/m/ready"))).status == 200
    assert (await gateway.ask(get("/v2/models/m/versions/1/ready"))).status == 200
    assert (await gateway.ask(get("/v2/models/asleep/ready"))).status == 400
    assert (await gateway.ask(get("/v2/models/none/ready"))).status == 404
    listed = json.loads((await gateway.ask(get("/v1/models"))).body)
    assert [m["id"] for m in listed["data"]] == ["asleep", "m"]
    assert json.loads((await gateway.ask(get("/v1/models/m"))).body)["id"] == "m"
    assert (await gateway.ask(get("/v1/models/none"))).status == 404
    assert not one.seen
    assert not gateway.wakes


async def test_asking_for_statistics_does_not_wake_but_metadata_does(gateway, kit):
    gateway.model("m", queue_max_s=30.0)
    stats = await gateway.ask(get("/v2/models/m/stats"))
    assert (stats.status, stats["Retry-After"]) == (503, "5")
    assert not gateway.wakes
    client = await gateway.client()
    client.send(get("/v2/models/m"))
    await kit.until(lambda: gateway.wakes == ["m"])


async def test_the_repository_index_comes_from_the_table(gateway, replica):
    one = await replica()
    gateway.model("asleep")
    gateway.model("broken", unavailable="it crashes")
    gateway.model("m", one)
    for request in (get("/v2/repository/index"), post("/v2/repository/index", b""), post("/v2/repository/index")):
        answer = await gateway.ask(request)
        assert [(m["name"], m["state"], m["reason"]) for m in json.loads(answer.body)] == [
            ("asleep", "UNAVAILABLE", "no replica is ready"),
            ("broken", "UNAVAILABLE", "it crashes"),
            ("m", "READY", ""),
        ]
    ready = await gateway.ask(post("/v2/repository/index", b'{"ready": true}'))
    assert [m["name"] for m in json.loads(ready.body)] == ["m"]
    for body, status in ((b"[]", 400), (b"{", 400), (b'{"ready": 1}', 400), (b" " * 10_000, 413)):
        answer = await gateway.ask(post("/v2/repository/index", body))
        assert (answer.status, list(json.loads(answer.body))) == (status, ["error"])
    assert not one.seen
    assert not gateway.wakes


async def test_what_is_for_the_owner_of_a_server_is_refused(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    for target in (
        "/v2/repository/models/m/unload",
        "/v2/logging",
        "/v2/models/m/trace/setting",
        "/models/m/v2/logging",
    ):
        answer = await gateway.ask(post(target))
        assert (answer.status, list(json.loads(answer.body))) == (403, ["error"])
    assert not one.seen


async def test_a_model_answers_to_its_aliases(gateway, replica):
    one, other = await replica(), await replica()
    gateway.model("m", one, aliases=("org/M-8B", "other", "both"))
    gateway.model("other", other, aliases=("both",))
    body = b'{"model": "org/M-8B"}'
    assert (await gateway.ask(post("/v1/chat/completions", body))).body == body
    assert (await gateway.ask(post("/v2/models/org%2FM-8B/infer"))).status == 200
    assert (await gateway.ask(post("/models/both/x"))).status == 200
    assert [s.target for s in one.seen] == ["/v1/chat/completions", "/v2/models/org%2FM-8B/infer", "/x"]
    assert (await gateway.ask(post("/models/other/x"))).status == 200
    assert len(other.seen) == 1
    assert gateway.meter("m").arrivals == 3
    listed = json.loads((await gateway.ask(get("/v1/models"))).body)["data"]
    assert [m["id"] for m in listed] == ["m", "other", "both", "org/M-8B"]
    assert (await gateway.ask(get("/v1/models/org%2FM-8B"))).status == 200
    gateway.model("m", one)
    assert (await gateway.ask(post("/v1/chat/completions", body))).status == 404


async def test_a_server_that_knows_one_name_only_is_asked_by_that(gateway, replica):
    one = await replica()
    gateway.model("m", one, aliases=("org/M-8B",), rename_aliases=True)
    answer = await gateway.ask(post("/v1/chat/completions", b'{"model": "org/M-8B", "n": 1}'))
    assert json.loads(answer.body) == {"model": "m", "n": 1}
    assert (await gateway.ask(post("/v2/models/org%2FM-8B/infer"))).status == 200
    exact = b'{ "model" : "m" }'
    assert (await gateway.ask(post("/v1/chat/completions", exact))).body == exact
    assert [s.target for s in one.seen] == ["/v1/chat/completions", "/v2/models/m/infer", "/v1/chat/completions"]


# --- keeping connections ---


async def test_connections_to_replicas_are_kept_and_bounded_by_what_runs_at_once(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    for _ in range(5):
        await gateway.ask(post(INFER))
    assert one.connections == 1
    assert gateway.pools.counts() == {"m-0": (0, 1)}


async def test_a_draining_endpoint_has_no_idle_connections_until_it_comes_back(gateway, replica, kit):
    one = await replica()
    gateway.model("m", one)
    await gateway.ask(post(INFER))
    gateway.model("m", gateway.endpoint(one, draining=True))
    await kit.until(lambda: one.open == 0)
    gateway.model("m", one)
    for _ in range(3):
        await gateway.ask(post(INFER))
    assert one.connections == 2


async def test_idle_connections_close_when_the_endpoint_leaves_the_table(gateway, replica, kit):
    one = await replica()
    gateway.model("m", one)
    await gateway.ask(post(INFER))
    gateway.model("m")
    await kit.until(lambda: one.open == 0)
