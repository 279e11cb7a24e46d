"""Heads that leave no room for doubt: those that the fast path reads without a parser.

A *plain* head is one that every parser reads in the same way, and that needs nothing but forwarding. The expressions
here take less than the parsers of the full path, never more: whatever is unusual (a folded line, a field given twice, a
coding, an expectation, a change of protocol) is not plain, and the full path sees to it.

What is made of a head is kept by its bytes, since clients and replicas send the same heads again and again. Only a few
values differ from one to the next: the number after `Content-Length`, and in requests the ids by which they are traced.
So these are cut out first: `split` gives what is left of a head, and `cut` of a request's, with what was cut out.
Nothing is lost: the names of the fields say where the values were, and no plain head has such a field without a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeVar

from gateway import headers, heads
from gateway.deadlines import BadTimeout, client_timeout
from gateway.protocols import Answer, Route, classify
from gateway.tenants import credential

#: A longer head is not kept, and not plain.
MAX_HEAD: Final = 4096
_MAX_KEPT: Final = 256
_MAX_FIELDS: Final = 64
_REQUEST_LINE: Final = re.compile(rb"(GET|HEAD|POST) (/(?!/)[0-9A-Za-z._~!$&'()*+,;=:@%/?-]*) HTTP/1\.1\r\n")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)\r\n")
NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,14}")
_LENGTHS: Final = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
#: Fields with which a request is for the full path.
_NOT_PLAIN: Final = frozenset({b"expect", b"proxy-connection", b"te", b"trailer", b"transfer-encoding"})
#: What `Connection` may name. Java's client asks with each request for HTTP/2, and takes no answer for no.
_NAMED: Final = frozenset({b"keep-alive", b"upgrade", b"http2-settings"})
#: Lists that may come in several lines: a proxy in front adds one of its own. The gateway looks at none of them.
_LISTS: Final = frozenset(
    {b"accept", b"accept-encoding", b"accept-language", b"baggage", b"cache-control", b"cookie", b"forwarded"}
    | {b"tracestate", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"}
)

Fields = list[tuple[bytes, bytes]]
V = TypeVar("V")

#: Fields of requests whose values say nothing but which request it is.
_TRACED: Final = (
    *("x-request-id", "x-correlation-id", "idempotency-key", "traceparent", "tracestate", "baggage", "b3"),
    *("x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-amzn-trace-id", "x-cloud-trace-context"),
    *("x-datadog-trace-id", "x-datadog-parent-id", "uber-trace-id", "sentry-trace"),
)
_VARYING: Final = re.compile(
    rb"(\r\n(?:%b): )([!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)(?![^\r])"
    % "|".join(("content-length", *_TRACED)).encode(),
    re.IGNORECASE,
)


def keep(kept: dict[bytes, V], key: bytes, value: V) -> None:
    """Keep what was made of a head, in bounds."""
    if len(kept) >= _MAX_KEPT:
        kept.clear()
    kept[key] = value


def split(data: bytes, end: int) -> tuple[bytes, bytes]:
    """(the head without the number of its length, that number) of a head whose last line ends before `end`.

    The number is empty where there is none; it is a canonical decimal otherwise, or the head is left whole.
    """
    for name in _LENGTHS:
        at = data.find(name, 0, end)
        if at >= 0:
            at += 18
            stop = data.find(b"\r\n", at, end + 2)
            number = data[at:stop]
            if NUMBER.fullmatch(number):
                return data[:at] + data[stop:end], number
            break
    return data[:end], b""


def cut(head: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """(the head without the values that vary, its pieces, the values) of a request's head without its last line end.

    Every second piece is what comes before a value: a line end and a name. A value that is not plain is left where it
    is; so is one that is empty, and only that there are fewer values then tells such a head from one that was cut.
    """
    pieces: list[bytes] = _VARYING.split(head)
    values = pieces[2::3]
    del pieces[2::3]
    return b"".join(pieces), pieces, values


def fields_of(block: bytes) -> Fields | None:
    """Fields of whole lines; None where any of them is not plain."""
    found: Fields = _FIELD.findall(block)
    if len(found) > _MAX_FIELDS or sum(len(name) + len(value) + 4 for name, value in found) != len(block):
        return None
    return found


@dataclass(frozen=True)
class RequestHead:
    """A plain head of a request, and what follows from it alone."""

    method: bytes
    host: bytes
    fields: Fields
    """As they came, `Host` and `Content-Length` included."""
    route: Route
    length: bytes | None
    """Decimal, of the first such head; None where such heads have none."""
    credential: str | None
    forwardable: bool
    """Whether it is for a model; if not, all that is known is where it ends."""


def read_request(head: bytes) -> RequestHead | None:
    """A request's head, its empty line excluded; None where it is not plain."""
    line = _REQUEST_LINE.match(head)
    if line is None or len(head) > MAX_HEAD:
        return None
    fields = fields_of(head[line.end() :])
    if fields is None:
        return None
    values = {name.lower(): value for name, value in fields}
    if not _NOT_PLAIN.isdisjoint(values):
        return None
    if len(values) != len(fields):
        single = [name for field, _ in fields if (name := field.lower()) not in _LISTS]
        if len(single) != len(set(single)):
            return None
    named = headers.nominated(fields)
    host = values.get(b"host", b"")
    length = values.get(b"content-length")
    if (
        not host
        or not host.isascii()
        or not heads.is_authority(host.decode("ascii"))
        or not named <= _NAMED
        or (b"upgrade" in named) != (values.get(b"upgrade", b"").lower() == b"h2c")
        or (b"upgrade" in values) != (b"upgrade" in named)
        or (length is not None and not NUMBER.fullmatch(length))
    ):
        return None
    target = line[2].decode("ascii")
    path = target.partition("?")[0].lower().replace("%2e", ".")
    route = classify(line[1].decode("ascii"), target)
    named_in_json = (
        route.answer is Answer.BODY
        and b"content-encoding" not in values
        and not values.get(b"content-type", b"").lower().startswith(b"multipart/")
    )
    try:
        patient = client_timeout(fields) is None
    except BadTimeout:
        patient = False
    return RequestHead(
        method=line[1],
        host=host,
        fields=fields,
        route=route,
        length=length,
        credential=credential(fields),
        forwardable="/." not in path
        and patient
        and (route.answer is Answer.FORWARD or (named_in_json and length is not None)),
    )
