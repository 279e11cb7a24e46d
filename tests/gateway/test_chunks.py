"""Bodies in chunks, cut anywhere: what is passed on, and where they end; held against h11."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.chunks import BadChunks, Walk

PLAIN = b"3\r\none\r\nA\r\n0123456789\r\n0003\r\ntwo\r\n0\r\n\r\n"


def walk(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    """(what was passed on, whether the end was found, what came after it)."""
    one = Walk()
    # One that is told to look at all of it finds the same.
    other = Walk()
    out = b""
    rest = b""
    for piece in pieces:
        if one.done:
            rest += piece
            continue
        whole = one.is_chunk(piece)
        try:
            passed = piece if whole else one.feed(piece)
        except BadChunks:
            with pytest.raises(BadChunks):
                other.feed(piece)
            raise
        assert other.feed(piece) == passed
        out += passed
    assert (other.done, other.rest) == (one.done, one.rest)
    return out, one.done, one.rest + rest


def read(data: bytes) -> tuple[bytes, bool] | None:
    """(the body, whether its end was found) as h11 reads it; None where it is broken."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    http.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    body = b""
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return body, True
            elif event is h11.NEED_DATA:
                return body, False
    except h11.RemoteProtocolError:
        return None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_body_passes_as_it_came_however_it_is_cut(size):
    pieces = [PLAIN[n : n + size] for n in range(0, len(PLAIN), size)]
    out, done, rest = walk(pieces)
    assert (read(out), done, rest) == ((b"one0123456789two", True), True, b"")


def test_an_event_of_a_stream_is_told_from_what_has_to_be_looked_at():
    one = Walk()
    assert [one.is_chunk(data) for data in (b"3\r\none\r\n", b"A\r\n0123456789\r\n", b"0003\r\none\r\n")] == [
        True,
        True,
        False,
    ]
    assert not any(one.is_chunk(data) for data in (b"", b"\r\n", b"0\r\n\r\n", b"3\r\none\r\n3\r\ntwo\r\n"))
    for nbytes in range(2100):
        for begin in (b"", b"\n", b"\r\n", b"\0", b"0", b"0\r\n"):
            assert not one.is_chunk((begin + b"-" * nbytes)[: nbytes - 2] + b"\r\n")
    one.feed(b"8\r\n")
    assert not one.is_chunk(b"3\r\none\r\n")
    one.feed(b"3\r\none\r\n\r\n")
    assert one.is_chunk(b"3\r\ntwo\r\n")


def test_data_is_not_held_back():
    one = Walk()
    assert one.feed(b"5\r\nhel") == b"5\r\nhel"
    assert one.feed(b"lo") == b"lo"
    assert one.feed(b"\r\n") == b"\r\n"
    assert one.feed(b"0\r") == b""
    assert one.feed(b"\n") == b""
    assert one.feed(b"\r\nnext") == b"0\r\n\r\n"
    assert (one.done, one.rest) == (True, b"next")


@pytest.mark.parametrize("form", [b"%x", b"%X", b"%04x"])
def test_a_chunk_of_any_size_passes_whole(form):
    for size in [*range(1, 300), *range(2000, 2100), 65_535, 65_536]:
        whole = form % size + b"\r\n" + b"d" * size + b"\r\n"
        assert walk([whole, b"0\r\n\r\n"]) == (whole + b"0\r\n\r\n", True, b"")
        with pytest.raises(BadChunks):
            walk([whole[:-3] + b"\r\n", b"0\r\n\r\n"])
        with pytest.raises(BadChunks):
            walk([whole[:-2] + b"d\r\n", b"0\r\n\r\n"])


@settings(max_examples=200)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), cuts=st.lists(st.integers(0, 1500), max_size=5))
def test_many_chunks_pass_at_once_however_they_are_cut(sizes, cuts):
    data = b"".join(b"%x\r\n" % n + b"\n" * n + b"\r\n" for n in sizes)
    at = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(at) if a < b]
    for _ in range(2):
        # The second time all lines are known.
        assert walk([*pieces, b"0\r\n\r\n"]) == (data + b"0\r\n\r\n", True, b"")
    with pytest.raises(BadChunks):
        walk([data[:-1] + b"0\r\n", b"0\r\n\r\n"])


def test_extensions_and_trailer_fields_are_left_out():
    out, done, rest = walk([b"3;a=b\r\none\r\n0;c\r\nX-T: 1\r\n\r\nrest"])
    assert (out, done, rest) == (b"3\r\none\r\n0\r\n\r\n", True, b"rest")


@pytest.mark.parametrize(
    "data",
    [
        *(b"x\r\n", b"\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1\na\n", b"1 1\r\na\r\n", b"1\r\nab\r\n", b"1\r\na\n\n"),
        *(b"1\r\na\r0\r\n", b"fffffffffffffffffffff\r\n", b"0\r\nno field\r\n\r\n", b"0\r\nX : 1\r\n\r\n"),
        *(b"1" * 70_000, b"0\r\nX: " + b"a" * 70_000),
    ],
)
def test_broken_framing_is_refused_wherever_it_is_cut(data):
    with pytest.raises(BadChunks):
        walk([data])
    if len(data) < 100:
        with pytest.raises(BadChunks):
            walk([data[n : n + 1] for n in range(len(data))])


@settings(max_examples=500)
@given(
    parts=st.lists(
        st.sampled_from([b"3\r\none\r\n", b"0\r\n", b"\r\n", b";a=b", b"X-T: 1\r\n", b"A", b"\n", b" ", b"\t"])
    ),
    noise=st.binary(max_size=3),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_what_h11_reads_is_what_a_client_gets(parts, noise, cuts):
    data = b"".join(parts) + noise
    at = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    try:
        out, done, _ = walk([data[a:b] for a, b in itertools.pairwise(at) if a < b])
    except BadChunks:
        # A line feed alone is refused as it comes; h11 waits for the end of the line to do so.
        assert read(data + b"\r\n") is None
        return
    told = read(data)
    if done:
        assert told is not None
        assert told[1]
    if told is not None:
        # A line that is not whole may be held back; nothing else is.
        assert read(out) == (told[0], done)
        assert done == told[1]
