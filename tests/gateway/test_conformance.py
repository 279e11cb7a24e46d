"""Requests byte by byte, through real sockets: what RFC 9112 and RFC 9110 want of a server and of an intermediary."""

from __future__ import annotations

import contextlib
import json

import pytest

P = b"POST /v2/models/m/infer HTTP/1.1\r\n"
G = b"GET /models/m/x HTTP/1.1\r\n"
H = b"Host: a\r\n"
E = b"Content-Length: 0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"0\r\n\r\n"

#: name -> (request, status). None of them may reach a replica, and each ends its connection.
REFUSED = {
    # --- framing (RFC 9112, section 6) ---
    "a length and chunks": (P + H + b"Content-Length: 1\r\n" + CHUNKED + b"\r\n" + LAST, 400),
    "chunks and a length": (P + H + CHUNKED + b"Content-Length: 5\r\n\r\n" + LAST, 400),
    "two lengths": (P + H + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "the same length twice": (P + H + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
    "a list of lengths": (P + H + b"Content-Length: 1, 1\r\n\r\na", 400),
    "length with a plus": (P + H + b"Content-Length: +1\r\n\r\na", 400),
    "length below zero": (P + H + b"Content-Length: -1\r\n\r\na", 400),
    "length in hexadecimal": (P + H + b"Content-Length: 0x1\r\n\r\na", 400),
    "length with an underscore": (P + H + b"Content-Length: 1_0\r\n\r\n" + b"a" * 10, 400),
    "length of words": (P + H + b"Content-Length: five\r\n\r\nhello", 400),
    "empty length": (P + H + b"Content-Length:\r\n\r\n", 400),
    "length in two parts": (P + H + b"Content-Length: 1 1\r\n\r\na", 400),
    "length beyond 64 bits": (P + H + b"Content-Length: 99999999999999999999999\r\n\r\na", 400),
    "length in other digits": (P + H + "Content-Length: ²\r\n\r\na".encode(), 400),
    "length before a space": (P + H + b"Content-Length : 1\r\n\r\na", 400),
    "coding before a space": (P + H + b"Transfer-Encoding : chunked\r\n\r\n" + LAST, 400),
    "unknown coding": (P + H + b"Transfer-Encoding: nonsense\r\n\r\n", 400),
    "chunked with a prefix": (P + H + b"Transfer-Encoding: xchunked\r\n\r\n" + LAST, 400),
    "chunked is not the last": (P + H + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + LAST, 400),
    "a coding we do not undo": (P + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST, 501),
    "chunked twice": (P + H + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + LAST, 400),
    "two codings": (P + H + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n" + LAST, 400),
    "coding after a vertical tab": (P + H + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + LAST, 400),
    "quoted coding": (P + H + b'Transfer-Encoding: "chunked"\r\n\r\n' + LAST, 400),
    "coding with a parameter": (P + H + b"Transfer-Encoding: chunked;a=b\r\n\r\n" + LAST, 400),
    "empty coding": (P + H + b"Transfer-Encoding:\r\nContent-Length: 0\r\n\r\n", 400),
    "chunks in HTTP/1.0": (P.replace(b"1.1", b"1.0") + H + CHUNKED + b"\r\n" + LAST, 400),
    # --- lines and characters (sections 2.2 and 5) ---
    "CR within a field": (P + H + b"X: a\rb\r\n" + E, 400),
    "field ends in LF": (P + H + b"X: a\n" + E, 400),
    "all lines end in LF": (b"POST /v2/models/m/infer HTTP/1.1\nHost: a\nContent-Length: 0\n\n", 400),
    "head ends in LF": (P + H + b"Content-Length: 0\r\n\n", 400),
    "NUL in a value": (P + H + b"X: a\0b\r\n" + E, 400),
    "NUL in a name": (P + H + b"X\0: a\r\n" + E, 400),
    "NUL in the target": (b"POST /v2/models/m\0/infer HTTP/1.1\r\n" + H + E, 400),
    "NUL in Host": (b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n", 400),
    "a control character": (P + H + b"X: a\x01b\r\n" + E, 400),
    "folded with a space": (P + H + b"X: a\r\n b\r\n" + E, 400),
    "folded with a tab": (P + H + b"X: a\r\n\tb\r\n" + E, 400),
    "a folded coding": (P + H + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + LAST, 400),
    "space before the first field": (P + b" X: a\r\n" + H + E, 400),
    "line without a colon": (G + H + b"nonsense\r\n\r\n", 400),
    "name with a space": (G + H + b"X Y: a\r\n\r\n", 400),
    "space before the colon": (G + H + b"X : a\r\n\r\n", 400),
    "empty name": (G + H + b": a\r\n\r\n", 400),
    "name beyond ASCII": (G + H + b"X\xe9: a\r\n\r\n", 400),
    # --- the request line (section 3) ---
    "method in small letters": (b"get / HTTP/1.1\r\n" + H + b"\r\n", 400),
    "method with a bracket": (b"GE(T / HTTP/1.1\r\n" + H + b"\r\n", 400),
    "no method": (b" / HTTP/1.1\r\n" + H + b"\r\n", 400),
    "unknown method": (b"BREW /models/m/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "TRACE": (b"TRACE /models/m/x HTTP/1.1\r\n" + H + b"\r\n", 405),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 405),
    "CONNECT to a path": (b"CONNECT /models/m/x HTTP/1.1\r\n" + H + b"\r\n", 405),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + H + b"\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + H + b"\r\n", 400),
    "HTTP/1.1x": (b"GET / HTTP/1.1x\r\n" + H + b"\r\n", 400),
    "no version": (b"GET /\r\n" + H + b"\r\n", 400),
    "another protocol": (b"GET / http/1.1\r\n" + H + b"\r\n", 400),
    "TLS where none is": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "tab after the method": (b"GET\t/ HTTP/1.1\r\n" + H + b"\r\n", 400),
    "space in the target": (b"GET /models/m/x y HTTP/1.1\r\n" + H + b"\r\n", 400),
    "target beyond ASCII": ("GET /models/m/é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400),
    "relative target": (b"GET models/m/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "another scheme": (b"GET ftp://b/models/m/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    "absolute without a host": (b"GET http:///models/m/x HTTP/1.1\r\n" + H + b"\r\n", 400),
    # --- Host (section 3.2) ---
    "no Host": (b"GET /models/m/x HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (G + H + b"Host: b\r\n\r\n", 400),
    "Host with a space": (G + b"Host: bad host\r\n\r\n", 400),
    "Host with a path": (G + b"Host: a/b\r\n\r\n", 400),
    "Host with a user": (G + b"Host: u@a\r\n\r\n", 400),
    "Host with words for a port": (G + b"Host: a:port\r\n\r\n", 400),
    "a list of Hosts": (G + b"Host: a, b\r\n\r\n", 400),
    # --- size ---
    "a value too long": (G + H + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "a name too long": (G + H + b"X" * 20_000 + b": a\r\n\r\n", 431),
    "a target too long": (b"GET /models/m/" + b"a" * 20_000 + b" HTTP/1.1\r\n" + H + b"\r\n", 431),
    "too many fields": (G + H + b"".join(b"X%d: a\r\n" % n for n in range(200)) + b"\r\n", 431),
    "too much in all": (G + H + b"".join(b"X%d: %s\r\n" % (n, b"a" * 10_000) for n in range(100)) + b"\r\n", 431),
    # --- expectations (RFC 9110, section 10.1.1) ---
    "an unknown expectation": (P + H + b"Expect: 200-maybe\r\nContent-Length: 1\r\n\r\na", 417),
}

#: Bodies that turn out to be malformed once the head has been let in.
BAD_BODIES = {
    "size in words": b"Z\r\nhello\r\n" + LAST,
    "size with a prefix": b"0x5\r\nhello\r\n" + LAST,
    "size below zero": b"-5\r\nhello\r\n" + LAST,
    "size beyond 64 bits": b"fffffffffffffffff\r\nhello\r\n" + LAST,
    "size before a space": b"5 \r\nhello\r\n" + LAST,
    "no size": b"\r\nhello\r\n" + LAST,
    "no line end after the data": b"5\r\nhello0\r\n\r\n",
    "more data than the size": b"5\r\nhello!\r\n" + LAST,
    "lines end in LF": b"5\nhello\n0\n\n",
    "extension ends in LF": b"5;a\nhello\r\n" + LAST,
    "CR within an extension": b"5;a\rb\r\nhello\r\n" + LAST,
    "trailer without a colon": b"5\r\nhello\r\n0\r\nbad\r\n\r\n",
    "trailer that frames": b"5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n",
}

#: name -> (request, target, Host, body) as the replica gets it.
ACCEPTED = {
    "leading empty line": (b"\r\n" + G + H + b"\r\n", "/x", "a", b""),
    "coding in capitals": (P + H + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n" + LAST, None, "a", b"a"),
    "tab before a value": (P + H + b"Transfer-Encoding:\tchunked\r\n\r\n1\r\na\r\n" + LAST, None, "a", b"a"),
    "chunk extension": (P + H + CHUNKED + b"\r\n5;a=b;c\r\nhello\r\n" + LAST, None, "a", b"hello"),
    "zeros before a size": (P + H + CHUNKED + b"\r\n00005\r\nhello\r\n" + LAST, None, "a", b"hello"),
    "trailers": (P + H + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", None, "a", b"hello"),
    "absolute-form": (b"GET http://b:81/models/m/x?y HTTP/1.1\r\n" + H + b"\r\n", "/x?y", "b:81", b""),
    "absolute-form, scheme in capitals": (b"GET HTTP://b/models/m/x HTTP/1.1\r\n" + H + b"\r\n", "/x", "b", b""),
    "IPv6 Host": (G + b"Host: [::1]:80\r\n\r\n", "/x", "[::1]:80", b""),
    "value beyond ASCII": (G + H + b"X: \xe9\xff\r\n\r\n", "/x", "a", b""),
    "GET with a body": (G + H + b"Content-Length: 3\r\n\r\nabc", "/x", "a", b"abc"),
    "OPTIONS": (b"OPTIONS /models/m/x HTTP/1.1\r\n" + H + b"\r\n", "/x", "a", b""),
    "a hundred fields": (G + H + b"".join(b"X%d: a\r\n" % n for n in range(100)) + b"\r\n", "/x", "a", b""),
    "HTTP/1.0 without Host": (b"POST /v2/models/m/infer HTTP/1.0\r\nContent-Length: 1\r\n\r\na", None, None, b"a"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_and_never_forwarded(gateway, replica, name):
    one = await replica()
    gateway.model("m", one)
    request, status = REFUSED[name]
    client = await gateway.client()
    client.send(request)
    answer = await client.response("GET")
    assert answer.status == status
    assert json.loads(answer.body)["error"]
    assert len(answer["X-Request-Id"]) == 32
    assert answer["Connection"] == "close"
    assert await client.ended()
    assert one.connections == 0


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("target", [b"/v2/models/m/infer", b"/v1/completions"])
async def test_a_malformed_body_is_never_taken_for_a_whole_one(gateway, replica, kit, name, target):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    follows = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
    client.send(b"POST %s HTTP/1.1\r\n" % target + H + CHUNKED + b"\r\n" + BAD_BODIES[name] + follows)
    assert (await client.response()).status == 400
    assert await client.ended()
    await kit.until(lambda: gateway.quiet and one.open == 0)
    assert not any(seen.body for seen in one.seen)


@pytest.mark.parametrize("name", ACCEPTED)
async def test_accepted_and_forwarded_in_one_form(gateway, replica, name):
    one = await replica()
    gateway.model("m", one)
    request, target, host, body = ACCEPTED[name]
    client = await gateway.client()
    client.send(request)
    answer = await client.response()
    assert (answer.status, answer.body) == (200, body)
    seen = one.seen[0]
    assert seen.target == (target or "/v2/models/m/infer")
    assert seen["Host"] == (host or f"127.0.0.1:{one.port}")
    assert len(one.seen) == 1


@pytest.mark.parametrize("together", [True, False])
async def test_trailers_never_become_fields_of_the_next_request(gateway, replica, kit, together):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    first = P + H + CHUNKED + b"\r\n1\r\na\r\n0\r\nX-One: 1\r\nX-Two: 2\r\n\r\n"
    client.send(first + (G + H + b"\r\n" if together else b""))
    answer = await client.response()
    assert (answer.status, answer["Connection"]) == (200, "close")
    with contextlib.suppress(ConnectionError):
        client.send(G + H + b"\r\n")
    assert await client.ended()
    assert len(one.seen) == 1
    plain = await gateway.client()
    for _ in range(3):
        assert (await plain.ask(P + H + CHUNKED + b"\r\n1\r\na\r\n" + LAST)).body == b"a"


async def test_options_of_the_whole_server_is_answered(gateway):
    assert (await gateway.ask(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


async def test_http_1_0_ends_the_connection_unless_it_asks_for_more(gateway, replica):
    gateway.model("m", await replica())
    client = await gateway.client()
    kept = await client.ask(b"GET /models/m/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept["Connection"] == "keep-alive"
    assert (await client.ask(b"GET /models/m/x HTTP/1.0\r\n\r\n")).status == 200
    assert await client.ended()


async def test_who_asks_for_http_2_is_answered_as_he_asked(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
    for _ in range(3):
        assert (await client.ask(P + H + h2c + b"Content-Length: 2\r\n\r\n{}")).status == 200
    assert not [name for seen in one.seen for name, _ in seen.headers if name.lower() in ("upgrade", "http2-settings")]


async def test_nothing_is_lost_behind_who_asks_for_http_2(gateway, replica):
    gateway.model("m", await replica())
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
    for asked in (
        b"GET /models/none/x HTTP/1.1\r\n" + H + h2c + b"\r\n",
        b"POST /models/none/x HTTP/1.1\r\n" + H + h2c + b"Content-Length: 2\r\n\r\n{}",
        b"POST /models/none/x HTTP/1.1\r\n" + H + h2c + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        client = await gateway.client()
        first = await client.ask(asked + b"GET /models/m/x HTTP/1.1\r\n" + H + b"\r\n")
        assert (first.status, first["Connection"]) == (404, "close")
        assert await client.ended()


async def test_connection_close_is_honoured(gateway):
    client = await gateway.client()
    answer = await client.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer["Connection"] == "close"
    assert await client.ended()


async def test_errors_say_where_they_end(gateway):
    client = await gateway.client()
    for _ in range(3):
        answer = await client.ask(b"HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, answer.body) == (404, b"")
        assert int(answer["Content-Length"]) > 0
        assert (await client.ask(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")).status == 404


async def test_random_model_names_make_no_new_series(gateway, replica):
    from gateway import metrics

    one = await replica()
    gateway.model("m", one)

    def series() -> set[str]:
        page = metrics.registry(
            metrics.WorkerCollector(
                gateway.dispatcher,
                connections=gateway.pools.counts,
                clients=lambda: gateway.front.clients,
                connected=lambda: True,
                ready=lambda: True,
                now=gateway.engine._loop.time,
            )
        )
        return {line.rpartition(" ")[0] for line in metrics.render(page).decode().splitlines() if line[:1] != "#"}

    async def ask(name: str) -> None:
        nonlocal client
        for request in (
            b"POST /v2/models/%s/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % name.encode(),
            b"GET /models/%s/x HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode(),
        ):
            assert (await client.ask(request)).status == 404

    client = await gateway.client()
    await client.ask(P + H + b"Content-Length: 2\r\n\r\n{}")
    await ask("first")
    before = series()
    for n in range(5_000):
        await ask(f"m-{n * 7919:x}")
    assert series() == before
    assert set(gateway.dispatcher.meter.models) == {"m"}
