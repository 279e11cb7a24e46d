from __future__ import annotations

import pytest

from gateway import headers


def up(*fields: tuple[bytes, bytes], **framing):
    settings = {
        "host": b"h",
        "client": "1.2.3.4",
        "scheme": "http",
        "request_id": "r",
        "length": None,
        "chunked": False,
    }
    return headers.upward(fields, **settings | framing)


def test_order_case_and_repeats_of_other_fields_are_kept():
    fields = [(b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b"3"), (b"Cookie", b"a=b")]
    assert [f for f in up(*fields) if f in fields] == fields


def test_what_connection_names_is_dropped_in_any_case_and_from_several_fields():
    out = up((b"Connection", b"close , X-One"), (b"CONNECTION", b"x-two"), (b"x-ONE", b"1"), (b"X-Two", b"2"))
    assert not {n.lower() for n, _ in out} & {b"connection", b"x-one", b"x-two"}


def test_connection_cannot_drop_what_the_gateway_says():
    out = dict(up((b"Connection", b"X-Forwarded-For, Host, Content-Length"), (b"Content-Length", b"9"), length=9))
    assert (out[b"X-Forwarded-For"], out[b"Host"], out[b"Content-Length"]) == (b"1.2.3.4", b"h", b"9")


@pytest.mark.parametrize(
    ("framing", "expected"),
    [
        ({}, []),
        ({"length": 0}, [(b"Content-Length", b"0")]),
        ({"length": 7}, [(b"Content-Length", b"7")]),
        ({"chunked": True}, [(b"Transfer-Encoding", b"chunked")]),
    ],
)
def test_framing_is_written_anew(framing, expected):
    out = up((b"Content-Length", b"99"), (b"Transfer-Encoding", b"gzip"), **framing)
    assert [f for f in out if f[0] in (b"Content-Length", b"Transfer-Encoding")] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"abc-1.2:3/4", "abc-1.2:3/4"), (b"", None), (b"a b", None), (b"x" * 129, None), (b"caf\xe9", None)],
)
def test_request_ids(value, expected):
    assert headers.request_id([(b"X-Request-ID", value)]) == expected


def test_trailers_that_frame_or_authenticate_are_dropped():
    fields = [(b"X-Sum", b"1"), (b"Content-Length", b"3"), (b"Authorization", b"x"), (b"Set-Cookie", b"a=b")]
    assert headers.trailers(fields) == [(b"X-Sum", b"1")]
