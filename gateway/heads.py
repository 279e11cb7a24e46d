"""What the head of a request must be to be let in, beyond what the parser has checked (RFC 9112, RFC 9110).

The parser refuses what is not HTTP. What is refused here is HTTP that the next reader might understand in another way,
or that no gateway in front of models has a use for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: All fields of a head together, in bytes.
MAX_HEAD_BYTES: Final = 64 * 1024
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: RFC 3986, section 3.2.2: a name or an IPv4 address, or an IPv6 address in brackets; and a port.
_AUTHORITY: Final = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a head is refused."""

    status: int
    reason: str
    message: str


def inspect(
    method: str, version: tuple[int, int], fields: Iterable[tuple[bytes, bytes]], *, target_bytes: int
) -> Fault | None:
    """What is wrong with a head that the parser let pass; None where nothing is."""
    if version not in ((1, 0), (1, 1)):
        if version < (1, 0):
            return Fault(400, "bad_version", "the request names no HTTP version; send HTTP/1.1")
        return Fault(505, "bad_version", f"HTTP/{version[0]}.{version[1]} is not spoken here; send HTTP/1.1")
    if method not in METHODS:
        return Fault(405, "bad_method", f"the method {method[:20]} is not served here; use {', '.join(METHODS)}")
    size = target_bytes
    coded = None
    expects = None
    for name, value in fields:
        size += len(name) + len(value) + 4
        lower = name.lower()
        if lower == b"transfer-encoding":
            coded = value
        elif lower == b"expect":
            expects = value
    if size > MAX_HEAD_BYTES:
        return Fault(431, "head_too_large", f"the head of the request is larger than {MAX_HEAD_BYTES} bytes")
    if coded is not None:
        if version == (1, 0):
            return Fault(400, "bad_framing", "an HTTP/1.0 request cannot have Transfer-Encoding")
        if not coded:
            return Fault(400, "bad_framing", "Transfer-Encoding is empty")
        if coded.lower() != b"chunked":
            # To decode it, or to pass on a coding of the connection as if it were of the body, would both be wrong.
            return Fault(501, "bad_framing", "the only transfer coding that is understood here is chunked")
    if expects is not None and expects.lower() != b"100-continue":
        return Fault(417, "bad_expectation", "the only expectation that can be met here is 100-continue")
    return None


def is_authority(text: str) -> bool:
    """Whether a Host field or the authority of a target is a host, maybe with a port; nothing at all is one too."""
    return _AUTHORITY.fullmatch(text) is not None
