"""Log files that others write: rotated by copy and truncate, since the writer holds its file open for ever.

`x.log` is the current part, `x.log.1` the part before it, and so on. The writer appends (O_APPEND), so after a
truncation it goes on at the new end. What it writes between the end of the copy and the truncation is lost; the copy
goes on until it finds nothing new, so that this is a matter of microseconds. A follower holds a shared lock while it
looks, a rotation an exclusive one, so that a follower sees either all of a rotation or nothing of it and can read on
in the rotated part where it had stopped.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

MAX_BYTES: Final = 10_000_000
#: Rotated parts beside the current one.
PARTS: Final = 2
#: Logs of Instances that are gone which are kept, the latest ones.
KEPT: Final = 50

#: Logs of Tangram's own processes, which lie in the same folder.
_OURS: Final = re.compile(r"supervisor|controller|worker-\d+")
_CHUNK: Final = 256 * 1024
#: Bytes that a tail looks back at most, however long the lines.
_TAIL_BYTES: Final = 1024 * 1024
_POLL_S: Final = 0.2


def part(path: Path, number: int) -> Path:
    """The file of a part: 0 is the current one."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def rotate(path: Path, max_bytes: int = MAX_BYTES, parts: int = PARTS) -> bool:
    """Rotate a log that has grown past max_bytes; whether it was.

    Not where it is not there, nor where somebody looks at it just now: then the next call does it.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
        with path.open("r+b") as current, _locked(current, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _rotate(path, current, parts)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


def _rotate(path: Path, current: IO[bytes], parts: int) -> None:
    copy = path.with_name(f"{path.name}.tmp")
    with copy.open("wb") as out:
        os.fchmod(out.fileno(), 0o600)
        shutil.copyfileobj(current, out, _CHUNK)
        for number in range(parts, 1, -1):
            if part(path, number - 1).exists():
                part(path, number - 1).replace(part(path, number))
        copy.replace(part(path, 1))
        # Again what has come meanwhile, with nothing between its end and the truncation.
        shutil.copyfileobj(current, out, _CHUNK)
        out.flush()
        current.truncate(0)


def tail(path: Path, lines: int) -> str:
    """The last lines, from rotated parts too where the current one is too short, at most 1 MiB of them.

    Raises FileNotFoundError.
    """
    with path.open("rb") as current, _locked(current, fcntl.LOCK_SH):
        return _last(path, current, lines).decode("utf-8", "replace")


def tail_since(path: Path, offset: int, lines: int) -> str:
    """The last lines of what was written after `offset` (of all, if the file was rotated since); "" if nothing was."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0
            return _last_of(file, lines, offset).decode("utf-8", "replace")
    except OSError:
        return ""


async def follow(path: Path, lines: int) -> AsyncIterator[bytes]:
    """The last lines, then what is written from then on, in pieces as they come, over rotations; ends when closed.

    Waits for a file that is not there yet.
    """
    position = 0
    before: tuple[int, int] | None = None
    begun = False
    while True:
        pieces: list[bytes] = []
        try:
            with path.open("rb") as current, _locked(current, fcntl.LOCK_SH | fcntl.LOCK_NB):
                rotated = _identity(part(path, 1))
                size = current.seek(0, os.SEEK_END)
                if not begun:
                    pieces.append(_last(path, current, lines))
                    position, begun = size, True
                elif rotated != before:
                    pieces += _unread(path, before, position)
                    position = 0
                elif size < position:
                    # Emptied by somebody else.
                    position = 0
                before = rotated
                current.seek(position)
                piece = current.read(_CHUNK)
                position += len(piece)
                pieces.append(piece)
        except FileNotFoundError:
            begun, position, before = True, 0, _identity(part(path, 1))
        except BlockingIOError:
            # Being rotated; look again.
            pass
        for piece in pieces:
            if piece:
                yield piece
        if not pieces or len(pieces[-1]) < _CHUNK:
            await asyncio.sleep(_POLL_S)


def remove_old(folder: Path, live: Container[str], kept: int = KEPT) -> None:
    """Remove logs, with their parts, that belong to no live Instance, but for the `kept` written last."""
    gone = []
    for path in folder.glob("*.log"):
        if path.stem not in live and not _OURS.fullmatch(path.stem):
            try:
                gone.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:
                continue
    for _, path in sorted(gone)[: max(0, len(gone) - kept)]:
        for number in range(PARTS + 1):
            part(path, number).unlink(missing_ok=True)


def _last(path: Path, current: IO[bytes], lines: int) -> bytes:
    # More than is wanted, since a rotation may have cut a line in two.
    found = _last_of(current, lines + 1)
    number = 1
    while len(_split(found)) <= lines and len(found) < _TAIL_BYTES and part(path, number).exists():
        with part(path, number).open("rb") as older:
            found = _last_of(older, lines + 2 - len(_split(found))) + found
        number += 1
    return b"".join(_split(found)[-lines:])[-_TAIL_BYTES:] if lines > 0 else b""


def _last_of(file: IO[bytes], lines: int, start: int = 0) -> bytes:
    if lines <= 0:
        return b""
    end = file.seek(0, os.SEEK_END)
    start = max(start, end - _TAIL_BYTES)
    position, ends = end, 0
    pieces: list[bytes] = []
    while position > start and ends <= lines:
        step = min(_CHUNK, position - start)
        position -= step
        file.seek(position)
        pieces.append(file.read(step))
        ends += pieces[-1].count(b"\n")
    return b"".join(_split(b"".join(reversed(pieces)))[-lines:])


def _split(text: bytes) -> list[bytes]:
    """Lines with their ends; what follows the last end is a line that is still being written."""
    *whole, rest = text.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _unread(path: Path, before: tuple[int, int] | None, position: int) -> Iterator[bytes]:
    """What was written between `position` of the part that was current and the last rotation, oldest first."""
    # Everything newer than the part that was .1 at the last look was rotated since then.
    newer = []
    number = 1
    while (identity := _identity(part(path, number))) is not None and identity != before:
        newer.append(part(path, number))
        number += 1
    for index, older in enumerate(reversed(newer)):
        with older.open("rb") as file:
            file.seek(position if index == 0 else 0)
            while piece := file.read(_CHUNK):
                yield piece


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


@contextmanager
def _locked(file: IO[bytes], how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
