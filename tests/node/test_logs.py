from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tangram.node import logs


class Writer:
    """As an Instance writes: one descriptor, appending, for ever."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "x.log"


@pytest.fixture
def write(log: Path) -> Iterator[Writer]:
    writer = Writer(log)
    yield writer
    writer.close()


def texts(log: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(log.parent.iterdir())}


# --- rotation ---


def test_a_log_is_rotated_past_its_limit_and_its_writer_goes_on(log: Path, write: Writer) -> None:
    write("a" * 10)
    assert not logs.rotate(log, max_bytes=10)
    write("b")
    assert logs.rotate(log, max_bytes=10)
    assert texts(log) == {"x.log": "", "x.log.1": "a" * 10 + "b"}
    write("c")
    # Without a hole in front: the writer appends.
    assert texts(log)["x.log"] == "c"
    assert not logs.rotate(log, max_bytes=10)


def test_the_oldest_part_goes(log: Path, write: Writer) -> None:
    for number in range(5):
        write(f"part {number}\n")
        assert logs.rotate(log, max_bytes=1, parts=2)
    assert texts(log) == {"x.log": "", "x.log.1": "part 4\n", "x.log.2": "part 3\n"}


def test_parts_are_private(log: Path, write: Writer) -> None:
    write("secret")
    logs.rotate(log, max_bytes=1)
    assert logs.part(log, 1).stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_not_rotated(log: Path) -> None:
    assert not logs.rotate(log)
    assert texts(log) == {}


def test_a_log_that_somebody_looks_at_is_rotated_later(log: Path, write: Writer) -> None:
    write("text")
    with log.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not logs.rotate(log, max_bytes=1)
        assert texts(log) == {"x.log": "text"}
    assert logs.rotate(log, max_bytes=1)


# --- tail ---


@pytest.mark.parametrize(
    ("lines", "seen"),
    [(0, ""), (1, "five"), (2, "four\nfive"), (4, "two\nthree\nfour\nfive"), (99, "one\ntwo\nthree\nfour\nfive")],
)
def test_the_tail_is_taken_from_rotated_parts_too(log: Path, write: Writer, lines: int, seen: str) -> None:
    for text in ("one\n", "two\nthree\n"):
        write(text)
        logs.rotate(log, max_bytes=1)
    write("four\nfive")
    assert logs.tail(log, lines) == seen


def test_a_line_that_a_rotation_cut_is_joined(log: Path, write: Writer) -> None:
    write("z\na\nb\nc")
    logs.rotate(log, max_bytes=1)
    write("d\n")
    assert logs.tail(log, 1) == "cd\n"
    assert logs.tail(log, 2) == "b\ncd\n"
    logs.rotate(log, max_bytes=1)
    assert logs.tail(log, 3) == "a\nb\ncd\n"


def test_the_tail_of_a_long_log_and_of_odd_bytes(log: Path, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CHUNK", 7)
    for number in range(100):
        write(f"line {number}\n")
    assert logs.tail(log, 3) == "line 97\nline 98\nline 99\n"
    # Progress bars return the carriage; that ends no line.
    write("10 %\r20 %\r30 %\n")
    assert logs.tail(log, 1) == "10 %\r20 %\r30 %\n"
    with log.open("ab") as raw:
        raw.write(b"\xff\xfe\n")
    assert logs.tail(log, 1) == "\ufffd\ufffd\n"


def test_an_empty_log_and_none(log: Path, write: Writer) -> None:
    assert logs.tail(log, 5) == ""
    log.unlink()
    with pytest.raises(FileNotFoundError):
        logs.tail(log, 5)


def test_the_tail_of_one_run_only(log: Path, write: Writer) -> None:
    assert logs.tail_since(log, 0, 5) == ""
    write("former run\n")
    offset = log.stat().st_size
    assert logs.tail_since(log, offset, 5) == ""
    write("a\nb\n")
    assert logs.tail_since(log, offset, 5) == "a\nb\n"
    assert logs.tail_since(log, offset, 1) == "b\n"
    logs.rotate(log, max_bytes=1)
    write("c\n")
    assert logs.tail_since(log, offset, 5) == "c\n"
    log.unlink()
    assert logs.tail_since(log, offset, 5) == ""
    log.mkdir()
    assert logs.tail_since(log, offset, 5) == ""


# --- following ---


class Follower:
    """What a follower has seen up to now; `until` waits for the end of it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self.text = ""
        self._pieces = pieces

    async def until(self, end: str) -> str:
        async with asyncio.timeout(5.0):
            while not self.text.endswith(end):
                self.text += (await anext(self._pieces)).decode()
        return self.text


@pytest.fixture
async def follower(log: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Follower]:
    """Follows from the last line on."""
    monkeypatch.setattr(logs, "_POLL_S", 0.002)
    pieces = logs.follow(log, 1)
    yield Follower(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]


async def test_following_begins_with_the_last_lines(log: Path, write: Writer, follower: Follower) -> None:
    write("one\ntwo\n")
    assert await follower.until("two\n") == "two\n"
    write("three\nfo")
    assert await follower.until("fo") == "two\nthree\nfo"
    write("ur\n")
    assert await follower.until("four\n") == "two\nthree\nfour\n"


async def test_following_goes_on_over_rotations_without_loss_or_repetition(
    log: Path, write: Writer, follower: Follower
) -> None:
    write("0\n")
    await follower.until("0\n")
    write("1\n")
    logs.rotate(log, max_bytes=1)
    write("2\n")
    assert await follower.until("2\n") == "0\n1\n2\n"
    # Two between two looks, and the new part is longer than what was read of the old one.
    write("3\n")
    logs.rotate(log, max_bytes=1)
    write("4 is longer\n")
    logs.rotate(log, max_bytes=1)
    write("5\n")
    assert await follower.until("5\n") == "0\n1\n2\n3\n4 is longer\n5\n"
    logs.rotate(log, max_bytes=1)
    write("6\n")
    assert await follower.until("6\n") == "0\n1\n2\n3\n4 is longer\n5\n6\n"


async def test_following_begins_before_there_is_a_log(log: Path, follower: Follower) -> None:
    seen = asyncio.create_task(follower.until("first\n"))
    await asyncio.sleep(0)
    writer = Writer(log)
    writer("first\n")
    assert await seen == "first\n"
    writer.close()


async def test_a_log_that_another_has_emptied_is_read_from_its_start(
    log: Path, write: Writer, follower: Follower
) -> None:
    write("a long line\n")
    await follower.until("line\n")
    os.truncate(log, 0)
    write("new\n")
    assert await follower.until("new\n") == "a long line\nnew\n"


async def test_a_follower_waits_for_a_rotation_to_end(log: Path, write: Writer, follower: Follower) -> None:
    write("one\n")
    with log.open("rb") as rotating:
        fcntl.flock(rotating, fcntl.LOCK_EX)
        seen = asyncio.create_task(follower.until("one\n"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not seen.done() and follower.text == ""
    assert await seen == "one\n"


async def test_much_at_once_comes_whole(log: Path, write: Writer, follower: Follower) -> None:
    write("start\n")
    await follower.until("start\n")
    many = "".join(f"line {n}\n" for n in range(100_000))
    write(many)
    assert await follower.until("line 99999\n") == "start\n" + many


# --- old logs ---


def test_only_the_latest_logs_of_what_is_gone_are_kept(tmp_path: Path) -> None:
    names = ["old", "older", "new", "live", "x", "x.log", "controller", "supervisor", "worker-0", "worker-10"]
    for age, name in enumerate(names):
        for number in range(2):
            path = logs.part(tmp_path / f"{name}.log", number)
            path.write_text("")
            os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "other.txt").write_text("")
    logs.remove_old(tmp_path, {"live", "x.log"}, kept=2)
    kept = {path.name.removesuffix(".1") for path in tmp_path.iterdir()}
    assert kept == {
        *("old.log", "older.log", "live.log", "x.log.log", "other.txt"),
        *("controller.log", "supervisor.log", "worker-0.log", "worker-10.log"),
    }


def test_a_tail_is_bounded_however_long_the_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes((b"x" * 1_000_000 + b"\n") * 20)
    found = logs.tail(log, 100)
    assert 900_000 < len(found) <= 1024 * 1024
