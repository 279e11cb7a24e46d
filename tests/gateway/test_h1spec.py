"""The cases of the public suite h1spec (33, its strict and hardening ones included), written anew from RFC 9112.

`test_conformance` asks more of each; here each case is one of that suite's, so that a score can be given.
"""

from __future__ import annotations

import pytest

HOST = b"Host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST / HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

ANY = frozenset(range(200, 600))
UNDERSTOOD = ANY - {400}
BAD = frozenset({400})

#: Case -> (request, statuses that are right).
CASES = {
    # --- the request line (section 3) ---
    "a plain GET": (GET + HOST + b"\r\n", ANY),
    "a POST with a length": (POST + HOST + b"Content-Length: 5\r\n\r\nhello", UNDERSTOOD),
    "asterisk-form": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", UNDERSTOOD),
    "absolute-form": (b"GET http://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n", UNDERSTOOD),
    "authority-form": (b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", UNDERSTOOD),
    "a version that is none of ours": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", BAD | {505}),
    "a line without a version": (b"GET /\r\n" + HOST + b"\r\n", BAD),
    # --- fields (sections 3.2 and 5) ---
    "no Host": (GET + b"\r\n", BAD),
    "two Hosts": (GET + HOST + b"Host: example.com\r\n\r\n", BAD),
    "a Host that is none": (GET + b"Host: bad host\r\n\r\n", BAD),
    "a space in a name": (GET + HOST + b"Bad Name: value\r\n\r\n", BAD),
    "a folded line": (GET + HOST + b"  continued\r\n\r\n", BAD),
    "a space before the colon": (GET + b"Host : localhost\r\n\r\n", BAD),
    "NUL in a value": (GET + b"Host: local\x00host\r\n\r\n", BAD),
    # --- bodies (sections 6 and 7) ---
    "chunks": (POST + HOST + CHUNKED + b"\r\n" + HELLO, UNDERSTOOD),
    "chunks in HTTP/1.0": (POST.replace(b"1.1", b"1.0") + HOST + CHUNKED + b"\r\n" + HELLO, BAD),
    "chunks and a length": (POST + HOST + CHUNKED + b"Content-Length: 5\r\n\r\n" + HELLO, BAD),
    "a coding that nobody knows": (POST + HOST + b"Transfer-Encoding: nonsense\r\n\r\nhello", BAD | {501}),
    "a length of words": (POST + HOST + b"Content-Length: xyz\r\n\r\nhello", BAD),
    "two lengths": (POST + HOST + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nhello!!", BAD),
    # --- limits ---
    "a long request line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", ANY),
    "many fields": (GET + HOST + b"".join(b"X-H-%d: value\r\n" % n for n in range(101)) + b"\r\n", ANY),
    "a long value": (GET + HOST + b"X-Big: " + b"x" * 9000 + b"\r\n\r\n", ANY),
}
#: Case -> request after which nothing may be served on the connection.
ENDS = {
    "chunked is not the last coding": POST + HOST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + HELLO,
    "chunks and a length end the connection": POST + HOST + CHUNKED + b"Content-Length: 5\r\n\r\n" + HELLO,
    "a size that is none": POST + HOST + CHUNKED + b"\r\nZ\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": POST + HOST + CHUNKED + b"\r\n5\r\nhello0\r\n\r\n",
}
PROBE = GET + HOST + b"\r\n"


@pytest.mark.parametrize("name", CASES)
async def test_it_is_answered_rightly_and_the_next_is_too(gateway, name):
    request, right = CASES[name]
    assert (await gateway.ask(request)).status in right
    assert (await gateway.ask(PROBE)).status == 404


@pytest.mark.parametrize("name", ENDS)
async def test_nothing_is_served_after_it(gateway, name):
    client = await gateway.client()
    answer = await client.ask(ENDS[name] + PROBE)
    # The path is that of no model, so a body that nobody reads may be bad without a word.
    assert answer.status in (400, 404)
    assert await client.ended()


async def test_an_expectation_is_met_or_refused(gateway):
    client = await gateway.client()
    answer = await client.ask(POST + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert answer.informational == [100] or 400 <= answer.status < 500


async def test_an_answer_to_head_has_no_body(gateway):
    answer = await gateway.ask(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == 404
    assert answer.body == b""


async def test_an_error_says_where_it_ends(gateway):
    answer = await gateway.ask(b"get / HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == 400
    assert int(answer["Content-Length"]) == len(answer.body)


async def test_a_connection_is_kept(gateway):
    client = await gateway.client()
    assert [(await client.ask(PROBE)).status for _ in range(2)] == [404, 404]


@pytest.mark.parametrize(
    "request_", [GET + HOST + b"Connection: close\r\n\r\n", b"GET / HTTP/1.0\r\n" + HOST + b"\r\n"]
)
async def test_a_connection_ends_when_it_should(gateway, request_):
    client = await gateway.client()
    assert (await client.ask(request_)).status == 404
    assert await client.ended()
