"""Header fields on their way through the gateway (RFC 9110, section 7.6).

Fields that are about one connection are dropped, both ways: the known ones, and those that `Connection` names. Framing
(`Content-Length`, `Transfer-Encoding`) is written anew from how the message was parsed, never copied, so the next
reader cannot see another end of the message than this one did. What a client says of its own address is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

Fields = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
#: Set by the gateway on requests, or answered by it.
_OURS_UP: Final = frozenset(
    {
        b"expect",
        b"forwarded",
        b"host",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
_OURS_DOWN: Final = frozenset({b"x-request-id"})
_NOT_IN_TRAILERS: Final = (
    _HOP_BY_HOP
    | _OURS_UP
    | {b"authorization", b"content-encoding", b"content-type", b"server-timing", b"set-cookie", b"trailer"}
)
#: The one protocol that may be switched to.
TO_WEBSOCKET: Final[Fields] = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def nominated(fields: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Lower-case names of the fields that `Connection` names."""
    names: set[bytes] = set()
    for name, value in fields:
        if len(name) == 10 and name.lower() == b"connection":
            names.update(token.strip().lower() for token in value.split(b","))
    return frozenset(names)


def request_id(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The client's own id of its request, if it is a sane one."""
    for name, value in fields:
        if len(name) == 12 and name.lower() == b"x-request-id":
            return value.decode("ascii") if REQUEST_ID.fullmatch(value) else None
    return None


def wants_websocket(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request asks to switch to WebSocket."""
    fields = list(fields)
    return b"upgrade" in nominated(fields) and any(
        len(name) == 7 and name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in fields
    )


def wants_trailers(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the client said that it reads trailer fields (`TE: trailers`)."""
    return any(
        len(name) == 2 and name.lower() == b"te" and b"trailers" in [t.strip().lower() for t in value.split(b",")]
        for name, value in fields
    )


def upward(
    fields: Iterable[tuple[bytes, bytes]],
    *,
    host: bytes,
    client: str,
    scheme: str,
    request_id: str,
    length: int | None,
    chunked: bool,
    websocket: bool = False,
) -> Fields:
    """Fields of the request to an endpoint; `length` and `chunked` say how its body is framed; neither: no body."""
    fields = list(fields)
    dropped = _HOP_BY_HOP | _OURS_UP | nominated(fields)
    out: Fields = [(b"Host", host)]
    out += [(name, value) for name, value in fields if name.lower() not in dropped]
    if websocket:
        out += TO_WEBSOCKET
    elif wants_trailers(fields):
        out += [(b"TE", b"trailers"), (b"Connection", b"TE")]
    if chunked:
        out.append((b"Transfer-Encoding", b"chunked"))
    elif length is not None:
        out.append((b"Content-Length", b"%d" % length))
    out += [
        (b"X-Forwarded-For", client.encode("ascii", "replace")),
        (b"X-Forwarded-Proto", scheme.encode("ascii")),
        (b"X-Request-Id", request_id.encode("ascii")),
    ]
    return out


def downward(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Fields of a response, without framing and without what is about the connection to the endpoint."""
    fields = list(fields)
    dropped = _HOP_BY_HOP | _OURS_DOWN | nominated(fields)
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def trailers(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Trailer fields that may be passed on: none that frames, routes or authenticates."""
    return [(name, value) for name, value in fields if name.lower() not in _NOT_IN_TRAILERS]


def serialize(status: int, reason: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Head of a response. The fields come from a parser or from this package, so they hold no line ends."""
    lines = [b"HTTP/1.1 %d %s" % (status, reason)]
    lines += [name + b": " + value for name, value in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def phrase(status: int) -> bytes:
    """What a status is called, for answers that do not say."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b"Unknown"
