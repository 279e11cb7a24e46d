"""The body of a client's request, read once and, while it is small, kept so that it can be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Final

from aiohttp import StreamReader

from gateway.timeouts import Pace

#: A body that is larger cannot be sent a second time.
REPLAY_BYTES: Final = 256 * 1024


class TooLarge(Exception):
    """The body is larger than may be read whole."""


class TooSlow(Exception):
    """The client sends its body too slowly."""


class Body:
    """A body; `keep` says whether parts that are sent on are kept for a second sending."""

    def __init__(self, reader: StreamReader, pace: Pace, *, keep: bool) -> None:
        self._reader = reader
        self._pace = pace
        self._kept: list[bytes] = []
        self._size = 0
        self.keep = keep
        self.grown = 0
        """Bytes that it is longer than what the client sends."""
        self._lost = False

    @property
    def rewindable(self) -> bool:
        """Whether it can still be sent from its first byte."""
        return not self._lost

    @property
    def held(self) -> int:
        """Bytes of it kept here."""
        return self._size

    @property
    def complete(self) -> bool:
        """Whether all of it is kept here."""
        return not self._lost and self._reader.at_eof()

    def hold(self) -> bool:
        """Whether all of it has come and is kept here; what came and can be kept is taken in for that."""
        if self._lost or not self._reader.is_eof():
            return False
        unread = self._reader.total_bytes - (self._size - self.grown)
        if unread > 0:
            if not self.keep or self._size + unread > REPLAY_BYTES:
                return False
            self._remember(self._reader.read_nowait())
        return True

    def whole(self) -> bytes | None:
        """All of it, if all of it has come; None if part of it has yet to. Only while `rewindable`."""
        if not self._reader.is_eof():
            return None
        part = self._reader.read_nowait()
        whole = b"".join([*self._kept, part]) if self._kept else part
        self._remember(part)
        return whole

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it from its first byte, as it comes; only while `rewindable`. TooSlow where it hardly does."""
        for part in list(self._kept):
            yield part
        while part := await self._next():
            self._remember(part)
            yield part

    async def read_all(self, limit: int) -> bytes:
        """Read and keep it whole; TooLarge beyond `limit` bytes, TooSlow where it hardly comes."""
        while not self._reader.at_eof():
            part = await self._next()
            self._kept.append(part)
            self._size += len(part)
            if self._size > limit:
                raise TooLarge
        self._kept = [b"".join(self._kept)]
        return self._kept[0]

    def replace(self, whole: bytes) -> None:
        """Another body in the place of the one that was read whole."""
        self.grown += len(whole) - self._size
        self._kept = [whole]
        self._size = len(whole)

    def splice(self, begins: int, ends: int, data: bytes) -> None:
        """Other bytes in the place of some that are kept; what is still to come stays as it is."""
        held = b"".join(self._kept)
        self.replace(held[:begins] + data + held[ends:])

    async def read_until(self, scan: Callable[[bytes], str | None], limit: int) -> str | None:
        """Read and keep it until `scan` finds something in its parts; None at its end. TooLarge, TooSlow as above."""
        while not self._reader.at_eof():
            part = await self._next()
            self._kept.append(part)
            self._size += len(part)
            found = scan(part)
            if found is not None:
                return found
            if self._size > limit:
                raise TooLarge
        return None

    async def _next(self) -> bytes:
        began = monotonic()
        try:
            async with asyncio.timeout(self._pace.left()):
                part = await self._reader.readany()
        except TimeoutError:
            raise TooSlow("the body of the request did not come in time") from None
        self._pace.came(len(part), monotonic() - began)
        return part

    def _remember(self, part: bytes) -> None:
        if self._lost or not part:
            return
        if self.keep and self._size + len(part) <= REPLAY_BYTES:
            self._kept.append(part)
            self._size += len(part)
        else:
            self._lost = True
            self._kept.clear()
            self._size = 0
