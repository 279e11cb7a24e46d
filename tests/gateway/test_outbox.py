"""The writes of one turn of the event loop: their order, and that none waits for longer than the turn."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11

from gateway.outbox import Outbox
from gateway.pools import Pool
from gateway.upstream import Connection


class Transport:
    """Notes what is written."""

    def __init__(self, notes: list[tuple[str, bytes]], name: str) -> None:
        self.notes = notes
        self.name = name
        self.closed = False
        self.when_written: Any = None

    def write(self, data: bytes) -> None:
        self.notes.append((self.name, bytes(data)))
        if self.when_written is not None:
            self.when_written()

    def is_closing(self) -> bool:
        return self.closed


def pair() -> tuple[Outbox, list[tuple[str, bytes]], Any, Any]:
    notes: list[tuple[str, bytes]] = []
    outbox = Outbox(asyncio.get_running_loop())
    return outbox, notes, cast(Any, Transport(notes, "a")), cast(Any, Transport(notes, "b"))


async def turn() -> None:
    """Until nothing more comes."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_is_put_goes_out_at_the_end_of_the_turn_in_its_order():
    outbox, notes, a, b = pair()
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    outbox.put(a, b"3")
    assert notes == []
    await turn()
    assert notes == [("a", b"1"), ("b", b"2"), ("a", b"3")]
    outbox.put(b, b"4")
    await turn()
    assert notes[3:] == [("b", b"4")]


async def test_several_wait_for_one_more_look_and_no_longer():
    outbox, notes, a, b = pair()
    for data in (b"1", b"2", b"3"):
        outbox.put(a, data)
    await asyncio.sleep(0)
    outbox.put(b, b"4")
    assert notes == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert notes == [("a", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"4")]


async def test_what_is_large_goes_out_at_once_after_what_came_before_it():
    outbox, notes, a, b = pair()
    outbox.put(a, b"head")
    outbox.put(b, b"other")
    outbox.put(a, memoryview(bytes(100_000)))
    assert [(name, len(data)) for name, data in notes] == [("a", 4), ("b", 5), ("a", 100_000)]


async def test_a_long_turn_does_not_keep_the_first_waiting_for_its_end():
    outbox, notes, a, _ = pair()
    for number in range(100):
        outbox.put(a, b"%d" % number)
    assert len(notes) > 60
    await turn()
    assert [int(data) for _, data in notes] == list(range(100))


async def test_while_turns_have_one_write_it_does_not_wait():
    outbox, notes, a, b = pair()
    for _ in range(4):
        outbox.put(a, b"1")
        await turn()
    for number in range(20):
        outbox.put((a, b)[number % 2], b"2")
        assert len(notes) == 5 + number
        await turn()
    for number in range(40):
        outbox.put((a, b)[number % 2], b"3")
        if number % 10 == 9:
            await turn()
    written = len(notes)
    outbox.put(a, b"4")
    assert len(notes) == written
    await turn()
    assert notes[-1] == ("a", b"4")


async def looks(outbox: Outbox, notes: list[tuple[str, bytes]], a: Any, *, found: bool) -> bool:
    """Whether a turn with several writes looked once more, and what it found."""
    outbox.put(a, b"1")
    outbox.put(a, b"2")
    written = len(notes)
    await asyncio.sleep(0)
    looked = len(notes) == written
    if looked and found:
        outbox.put(a, b"3")
    await turn()
    return looked


async def test_while_looks_find_nothing_a_turn_ends_without_one():
    outbox, notes, a, _ = pair()
    in_vain = [await looks(outbox, notes, a, found=False) for _ in range(100)]
    assert all(in_vain[:5])
    assert 1 <= sum(in_vain[20:]) <= 8
    found = [await looks(outbox, notes, a, found=True) for _ in range(100)]
    assert all(found[20:])


async def test_nothing_is_written_to_what_is_closed():
    outbox, notes, a, b = pair()
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    a.closed = True
    outbox.flush()
    assert notes == [("b", b"2")]


async def test_what_a_write_leads_to_comes_after_what_was_put_before():
    outbox, notes, a, b = pair()

    def once() -> None:
        a.when_written = None
        outbox.put(b, b"3")
        outbox.put(b, bytes(100_000))

    a.when_written = once
    outbox.put(a, b"1")
    outbox.put(b, b"2")
    await turn()
    assert [data[:1] for _, data in notes] == [b"1", b"2", b"3", b"\0"]


class Sink:
    """Notes how a lent connection ends."""

    def __init__(self) -> None:
        self.endings: list[bool] = []

    def received(self, data: bytes) -> None: ...
    def stalled(self) -> None: ...
    def writable(self) -> None: ...
    def ended(self, *, orderly: bool) -> None:
        self.endings.append(orderly)


async def test_the_full_path_writes_after_what_the_fast_path_left():
    """An endpoint may answer before the end of a body, and its connection take the next request in the same turn."""
    outbox, notes, a, _ = pair()
    connection = Connection(Pool("h", 1, lambda: None), asyncio.get_running_loop())
    connection.connection_made(a)
    connection.ask(cast(Any, Sink()), b"head", outbox)
    connection.put(b"end of body", outbox)
    connection.give_back(None, 0.0)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]), h11.EndOfMessage())
    await turn()
    assert [data[:11] for _, data in notes] == [b"head", b"end of body", b"GET / HTTP/"]


async def test_a_connection_that_is_lost_before_it_is_asked_says_so():
    outbox, notes, a, _ = pair()
    sink = Sink()
    connection = Connection(Pool("h", 1, lambda: None), asyncio.get_running_loop())
    connection.connection_made(a)
    connection.connection_lost(None)
    connection.ask(cast(Any, sink), b"head", outbox)
    assert sink.endings == [False]
    assert not notes
