"""The body of a client's request, read once and, while it is small, kept so that it can be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import StreamReader

#: A body that is larger cannot be sent a second time.
REPLAY_BYTES: Final = 256 * 1024


class TooLarge(Exception):
    """The body is larger than may be read whole."""


class Body:
    """A body; `keep` says whether its parts are kept for a second sending."""

    def __init__(self, reader: StreamReader, *, keep: bool) -> None:
        self._reader = reader
        self._kept: list[bytes] = []
        self._size = 0
        self._keep = keep
        self._lost = False

    @property
    def rewindable(self) -> bool:
        """Whether it can still be sent from its first byte."""
        return not self._lost

    @property
    def held(self) -> int:
        """Bytes of it kept here."""
        return self._size

    def whole(self) -> bytes | None:
        """All of it, if all of it has come; None if part of it has yet to. Only while `rewindable`."""
        if not self._reader.is_eof():
            return None
        part = self._reader.read_nowait()
        whole = b"".join([*self._kept, part]) if self._kept else part
        self._remember(part)
        return whole

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it from its first byte, as it comes; only while `rewindable`."""
        for part in list(self._kept):
            yield part
        while part := await self._reader.readany():
            self._remember(part)
            yield part

    async def read_all(self, limit: int, stall_s: float) -> bytes:
        """Read and keep it whole; TooLarge beyond `limit` bytes, TimeoutError where nothing comes for `stall_s`."""
        while not self._reader.at_eof():
            async with asyncio.timeout(stall_s):
                part = await self._reader.readany()
            self._kept.append(part)
            self._size += len(part)
            if self._size > limit:
                raise TooLarge
        self._kept = [b"".join(self._kept)]
        return self._kept[0]

    def _remember(self, part: bytes) -> None:
        if self._lost or not part:
            return
        if self._keep and self._size + len(part) <= REPLAY_BYTES:
            self._kept.append(part)
            self._size += len(part)
        else:
            self._lost = True
            self._kept.clear()
            self._size = 0
