"""Walking over a body in chunks (RFC 9112, section 7.1) as it passes, in pieces cut anywhere.

`Walk.feed` checks each byte of the framing and gives what is to be passed on: the same chunks, without extensions and
without trailer fields. A line that is not whole is held back until it is; data is not. What the walk accepts is what
h11 accepts, so both paths of the gateway find the end of an answer at the same byte.
"""

from __future__ import annotations

import re
from typing import Final

import h11

#: Of a line with the size of a chunk, and of all trailer fields.
_MAX_LINE: Final = 64 * 1024
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,20})")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,20})(?:;.*)?[ \t]*\r\n")
_BLANK: Final = re.compile(rb"\n\r?\n")
_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
LAST: Final = b"0\r\n\r\n"


def _whole(nbytes: int) -> bytes:
    """How a chunk begins that has so many bytes with its framing; longer than it where there can be none."""
    size = next((n for n in range(max(1, nbytes - 9), nbytes - 4) if n + len(b"%x" % n) + 4 == nbytes), 0)
    return b"%x\r\n" % size if size else bytes(nbytes + 1)


#: The end of a chunk and the line with the size of the next one, as they were seen -> that size.
_known: Final[dict[bytes, int]] = {}
_MAX_KNOWN: Final = 1024
_MAX_WHOLE: Final = 2048
_WHOLE: Final = [_whole(nbytes) for nbytes in range(_MAX_WHOLE)]
_WHOLE_UPPER: Final = [begin.upper() for begin in _WHOLE]


class BadChunks(ValueError):
    """The framing is broken."""


def _over(data: bytes, at: int) -> tuple[int, int]:
    """Go over whole chunks whose lines are known, from where the data of one ends; (where that led to, bytes that are
    left of the chunk there, with its line end).
    """
    end = len(data)
    width = 0
    while True:
        # Most lines are as long as the one before.
        stop = at + width
        size = _known.get(data[at:stop], 0)
        if not size:
            stop = data.find(b"\n", at + 2) + 1
            size = _known.get(data[at:stop], 0) if stop else 0
            if not size:
                return at, 2
            width = stop - at
        if size + 2 >= end - stop:
            return stop, size + 2
        at = stop + size


class Walk:
    """One body on its way."""

    __slots__ = ("_held", "_left", "_trailing", "done", "rest")

    def __init__(self) -> None:
        self._held = b""
        """A line that is not whole."""
        self._left = 0
        """Bytes of the chunk to come, with the line end after its data."""
        self._trailing = False
        """After the last chunk."""
        self.done = False
        self.rest = b""
        """What came after the end."""

    def is_chunk(self, data: bytes) -> bool:
        """Whether this is one whole chunk, as an event of a stream usually comes: `feed` would give it as it is."""
        nbytes = len(data)
        if self._left or self._trailing or self._held or nbytes >= _MAX_WHOLE or not data.endswith(b"\r\n"):
            return False
        # Its size says how it must begin.
        return data.startswith(_WHOLE[nbytes]) or data.startswith(_WHOLE_UPPER[nbytes])  # noqa: PIE810

    def feed(self, data: bytes) -> bytes:
        """What of the body may be passed on now that this came. Raises BadChunks."""
        if self._held:
            data = self._held + data
            self._held = b""
        if self._trailing:
            return self._trailers(data, 0)
        left = self._left
        at, end = 0, len(data)
        out: list[bytes] = []
        begin = 0
        while at < end:
            if 2 <= left < end - at:
                at, left = _over(data, at + left - 2)
            if left > 2:
                step = min(left - 2, end - at)
                at += step
                left -= step
            elif left:
                if data[at] != (13 if left == 2 else 10):
                    raise BadChunks("the data of a chunk does not end where its size says")
                at += 1
                left -= 1
            else:
                stop = data.find(b"\n", at)
                if stop < 0:
                    if end - at > _MAX_LINE:
                        raise BadChunks("the line with the size of a chunk does not end")
                    self._held = data[at:]
                    break
                plain = data[stop - 1] == 13 and _SIZE.fullmatch(data, at, stop - 1)
                match = plain or _SIZE_LINE.fullmatch(data, at, stop + 1)
                if not match:
                    raise BadChunks("the size of a chunk is not a hexadecimal number")
                size = int(match[1], 16)
                if not size:
                    out += (data[begin:at], self._trailers(data, stop + 1))
                    return b"".join(out)
                if plain:
                    if len(_known) >= _MAX_KNOWN:
                        _known.clear()
                    _known[b"\r\n" + data[at : stop + 1]] = size
                else:
                    out += (data[begin:at], match[1], b"\r\n")
                    begin = stop + 1
                at, left = stop + 1, size + 2
        self._left = left
        if not out and at == end:
            return data
        out.append(data[begin:at])
        return b"".join(out)

    def _trailers(self, data: bytes, at: int) -> bytes:
        self._trailing = True
        if data.startswith(b"\r\n", at):
            self.done, self.rest = True, data[at + 2 :]
            return LAST
        block = data[at:]
        # A line end alone may still become an empty line.
        if not _BLANK.search(block) and block[:1] != b"\n":
            if len(block) > _MAX_LINE:
                raise BadChunks("the trailer fields do not end")
            self._held = block
            return b""
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_LINE + len(_HEAD))
        http.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        http.send(h11.EndOfMessage())
        http.receive_data(_HEAD + block)
        try:
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    raise BadChunks("the trailer fields do not end")
        except h11.RemoteProtocolError as error:
            raise BadChunks("the trailer fields are not valid") from error
        self.done, self.rest = True, http.trailing_data[0]
        return LAST
