"""Heads of answers on the fast path: read once, and known again by their bytes.

What is not plain (`gateway.plain`) is left to h11, which reads answers on the full path: it has the last word on the
same bytes, so both paths take and refuse the same answers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from gateway import headers, heads, plain
from gateway.exchange import own_fields, timing

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?\r\n")
_KEEPALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)
_BLANK: Final = re.compile(rb"\n\r?\n")


#: The field for each tenth of a millisecond up to 0.1 s.
TIMINGS: Final = [b"\r\nServer-Timing: %b\r\n" % timing(0.0, 0.0, n / 1e4) for n in range(1000)]


def server_timing(upstream_s: float) -> bytes:
    """The field Server-Timing, with the line end before it, of a request that has not waited for a place."""
    tenths = int(upstream_s * 1e4 + 0.5)
    return TIMINGS[tenths] if tenths < 1000 else b"\r\nServer-Timing: %b\r\n" % timing(0.0, 0.0, upstream_s)


def own_answer(
    asked: plain.RequestHead,
    id: bytes,
    status: int,
    message: str,
    reason: str,
    times: bytes,
    *,
    retry_after_s: int | None = None,
    close: bool = False,
) -> bytes:
    """An error of the gateway's own, as the full path gives it; `times` is the value of Server-Timing."""
    body = json.dumps(asked.route.shape(status, message, reason)).encode() + b"\n"
    fields = own_fields(status, retry_after_s)
    fields += [(b"X-Request-Id", id), (b"Server-Timing", times), (b"Content-Length", b"%d" % len(body))]
    if close:
        fields.append((b"Connection", b"close"))
    head = headers.serialize(status, HTTPStatus(status).phrase.encode("ascii"), fields)
    return head if asked.method == b"HEAD" else head + body


class NotHTTP(ValueError):
    """What came is no head of an answer that could be passed on."""


@dataclass(frozen=True)
class AnswerHead:
    """Head of an answer."""

    status: int
    lead: bytes
    """Status line and fields as the client gets them, up to and with the name of the field for the request's id."""
    chunked: bool
    length: bytes
    """Decimal; empty where there is none, or where it was cut out."""
    reusable: bool
    """Whether the connection may take another request."""
    keepalive_s: float | None
    """How long the replica keeps idle connections, where it says."""


def read(head: bytes) -> AnswerHead | None:
    """An answer's head, its empty line excluded; None where it is not plain."""
    line = _STATUS_LINE.match(head)
    if line is None or len(head) > plain.MAX_HEAD:
        return None
    fields = plain.fields_of(head[line.end() :])
    if fields is None:
        return None
    values: dict[bytes, bytes] = {}
    for name, value in fields:
        lower = name.lower()
        if lower in values and lower in (b"content-length", b"transfer-encoding", b"connection", b"keep-alive"):
            return None
        values[lower] = value
    coding, length = values.get(b"transfer-encoding"), values.get(b"content-length")
    if (coding is not None and (coding != b"chunked" or length is not None)) or (
        length is not None and not plain.NUMBER.fullmatch(length)
    ):
        return None
    connection = values.get(b"connection", b"keep-alive").lower()
    if connection not in (b"keep-alive", b"close"):
        return None
    return _made(int(line[1]), line[2] or b"", fields, reusable=connection != b"close")


def judge(data: bytes, method: bytes) -> tuple[AnswerHead, int]:
    """What h11 makes of an answer whose head ends somewhere in `data`, and how long that head is. Raises NotHTTP."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(data) + 1)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    http.receive_data(data)
    try:
        event = http.next_event()
    except h11.RemoteProtocolError as error:
        raise NotHTTP("what came is not a valid answer") from error
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise NotHTTP("what came is not a valid answer")
    raw = event.headers.raw_items()
    names = {name for name, _ in event.headers}
    if sum(len(name) + len(value) + 4 for name, value in raw) > heads.MAX_HEAD_BYTES:
        raise NotHTTP(f"the head of the response is larger than {heads.MAX_HEAD_BYTES} bytes")
    if b"transfer-encoding" in names and b"content-length" in names:
        raise NotHTTP("the response has both Content-Length and Transfer-Encoding")
    closes = event.http_version < b"1.1" or any(
        name == b"connection" and b"close" in [t.strip().lower() for t in value.split(b",")]
        for name, value in event.headers
    )
    fields = [(name, value) for name, value in raw if name.lower() != b"content-length"]
    fields += [(name, value) for name, value in event.headers if name == b"content-length"]
    return _made(event.status_code, event.reason, fields, reusable=not closes), len(data) - len(http.trailing_data[0])


def _made(status: int, reason: bytes, fields: headers.Fields, *, reusable: bool) -> AnswerHead:
    chunked, length, keepalive_s = False, b"", None
    for name, value in fields:
        lower = name.lower()
        if lower == b"transfer-encoding":
            chunked = True
        elif lower == b"content-length":
            length = b"%d" % int(value)
        elif lower == b"keep-alive" and (match := _KEEPALIVE_TIMEOUT.search(value)):
            keepalive_s = float(match[1])
    lead = headers.serialize(status, reason or headers.phrase(status), headers.downward(fields))
    if status >= 200:
        lead = lead[:-2] + b"X-Request-Id: "
    return AnswerHead(status, lead, chunked, length, reusable, keepalive_s)


@dataclass(frozen=True)
class Known:
    """What is known of the exact bytes of an answer's head."""

    head: AnswerHead
    length: bytes
    """Decimal; empty where the answer has none."""
    size: int
    """Of head and body of a good answer that has both, if it was not HEAD that was asked; else 0."""
    framing: bytes
    """The last fields of the head and its end, for an answer with a body that has a length."""


class Answers:
    """Heads of answers that were seen."""

    def __init__(self) -> None:
        self.exact: dict[bytes, Known] = {}
        """By all bytes of a head but its empty line."""
        self._heads: dict[bytes, AnswerHead] = {}

    def look_up(self, data: bytes, method: bytes) -> tuple[Known, int] | None:
        """What is known of the head that begins `data`, and its size; None where it is not whole. Raises NotHTTP."""
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            known = self.exact.get(data[:end])
            if known is None:
                known = self._learn(data, end)
            if known is not None:
                return known, end + 4
        if _BLANK.search(data) is None:
            # Two things are told at once that cannot become an answer.
            if data[0] <= 0x20 or len(data) > heads.MAX_HEAD_BYTES:
                raise NotHTTP("what came is not a valid answer")
            return None
        head, size = judge(data, method)
        return Known(head, head.length, 0, b""), size

    def _learn(self, data: bytes, end: int) -> Known | None:
        key, number = plain.split(data, end)
        head = self._heads.get(key)
        if head is None:
            head = read(data[: end + 2])
            if head is None:
                return None
            plain.keep(self._heads, key, head)
        length = number or head.length
        whole = bool(length) and 200 <= head.status < 500 and head.status not in (204, 304)
        size = end + 4 + int(length) if whole else 0
        known = Known(head, length, size, b"Content-Length: %b\r\n\r\n" % length)
        plain.keep(self.exact, data[:end], known)
        return known
