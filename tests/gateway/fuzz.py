"""Random requests and answers, valid and not, cut at random places, through the whole path of a gateway.

What is held against what:
- a stream of requests sent whole, and the same stream cut: answers and forwarded requests must be the same;
- the forwarded requests, and what h11 reads in the stream: they must be the first so many of those, so that no two
  readers ever see different requests (what is called smuggling);
- an answer of a replica, and what h11 reads in it: a whole one must arrive whole, any other must never look whole;
- the fast path, and the full path: the same streams and the same answers through a gateway with it and one without it.
  What replicas and clients get must be the same, byte for byte but for ids, times and the edges of chunks.

A `Rig` is one gateway to test.

    python -m tests.gateway.fuzz --seconds 60 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import sys
import time
from dataclasses import dataclass, field

import h11
import uvloop

from gateway.timeouts import Timeouts

from .conftest import Gateway, Response, Truncated, reset

#: More than a server waits for the rest of a body that it has answered already.
PATIENCE_S = 20.0
#: Ends each stream: its answer says that all before it is done.
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n"
_VOLATILE = re.compile(rb"(?im)^(x-request-id|server-timing|date): [^\r]*\r\n")
_OWN = re.compile(rb"(?m)^X-Request-Id: [0-9a-f]{32}\r\n")
_JUNK = [bytes([n]) for n in b'\r\n\0 \t:;,/"0123aZ\x7f\x80\xff'] + [
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"chunked",
    b"HTTP/1.1",
]

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Forwarded:
    """A whole request as a replica got it."""

    method: bytes
    target: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    head: bytes
    """As it came, less what differs between two requests that are the same."""

    @property
    def meaning(self) -> tuple[bytes, bytes, bytes]:
        return self.method, self.target, self.body


@dataclass(frozen=True)
class Observation:
    """What one stream led to."""

    answers: bytes
    forwarded: tuple[Forwarded, ...]


@dataclass(frozen=True)
class Stream:
    """Bytes of a client, in pieces."""

    data: bytes
    cuts: tuple[int, ...] = ()

    @property
    def pieces(self) -> list[bytes]:
        at = [0, *self.cuts, len(self.data)]
        return [self.data[a:b] for a, b in itertools.pairwise(at)]

    def __repr__(self) -> str:
        return f"Stream({self.data!r}, {self.cuts})"


@dataclass
class Rig:
    """A gateway with one replica behind it that records requests and answers as told, or with an echo."""

    fast: bool = True
    """Whether its gateway has the fast path."""
    script: list[bytes] = field(default_factory=list)
    """Pieces of the next answer; none: an echo."""
    end: str = ""
    """What ends the connection after them: close, reset, or nothing."""
    forwarded: list[Forwarded] = field(default_factory=list)

    async def start(self) -> None:
        self.gateway = Gateway(timeouts=Timeouts(head_s=1.0, body_grace_s=1.0), fast=self.fast)
        await self.gateway.front.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.gateway.model("m", self.gateway.endpoint(self), timeout_s=5.0, retry_attempts=0)  # type: ignore[arg-type]

    async def stop(self) -> None:
        self._server.close()
        await self.gateway.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def observe(self, stream: Stream) -> Observation:
        """Send a stream, and wait until the gateway has ended the connection."""
        self.forwarded = []
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.front.port)
        got = asyncio.create_task(reader.read())
        try:
            for piece in stream.pieces:
                if writer.transport.is_closing():
                    break
                writer.write(piece)
                await asyncio.sleep(0.0005)
            async with asyncio.timeout(PATIENCE_S):
                answers = await got
        except ConnectionError:
            answers = b"reset"
        finally:
            got.cancel()
            writer.transport.abort()
        end = time.monotonic() + PATIENCE_S
        while not self.gateway.quiet:
            assert time.monotonic() < end, "gauges do not return to 0"
            await asyncio.sleep(0.001)
        return Observation(_VOLATILE.sub(b"", answers), tuple(self.forwarded))

    async def fetch(self, pieces: list[bytes], end: str, method: str) -> Response | None:
        """What a client gets where the replica answers so; None where it can tell that the answer is not whole."""
        self.script, self.end = pieces, end
        client = await self.gateway.client()
        try:
            return await client.ask(f"{method} /models/m/x HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        except (Truncated, ConnectionError):
            return None
        finally:
            self.script = []
            client.leave()
            self.gateway._clients.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
        request: h11.Request | None = None
        body = raw = b""
        try:
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    came = await reader.read(65536)
                    raw += came
                    http.receive_data(came)
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    own = b":%d" % self.port
                    fields = tuple((n, v.replace(own, b":0")) for n, v in request.headers if n != b"x-request-id")
                    head = _OWN.sub(b"", raw.partition(b"\r\n\r\n")[0] + b"\r\n").replace(own, b":0")
                    self.forwarded.append(Forwarded(request.method, request.target, fields, body, head))
                    raw = b""
                    if self.script:
                        for piece in self.script:
                            if writer.transport.is_closing():
                                return
                            writer.write(piece)
                            await asyncio.sleep(0.0005)
                        if self.end == "reset":
                            reset(writer)
                        if self.end:
                            return
                        # Whatever was said, nothing more is: the gateway decides what becomes of the connection.
                        await reader.read()
                        return
                    head = h11.Response(status_code=200, headers=[("Content-Length", str(len(body)))], reason=b"OK")
                    sent = [head, *([] if request.method == b"HEAD" else [h11.Data(data=body)]), h11.EndOfMessage()]
                    writer.write(b"".join(http.send(e) or b"" for e in sent))
                    http.start_next_cycle()
                else:
                    return
        except (h11.RemoteProtocolError, h11.LocalProtocolError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


# --- streams ---


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few bytes of it are lost, changed or added."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        what = rng.random()
        if what < 0.4:
            data = data[:at] + rng.choice(_JUNK) + data[at:]
        elif what < 0.7:
            data = data[:at] + rng.choice(_JUNK) + data[at + 1 :]
        elif what < 0.9:
            data = data[:at] + data[at + rng.randint(1, 4) :]
        else:
            end = min(len(data), at + rng.randint(1, 30))
            data = data[:at] + data[at:end] + data[at:]
    return data


def chunk(rng: random.Random, body: bytes, *, trailers: bool = True) -> bytes:
    """A body in chunks."""
    out = b""
    while body:
        size = rng.randint(1, len(body))
        extension = rng.choice((b"", b"", b"", b";a=b", b';a="b;c"'))
        out += rng.choice((b"%x", b"%X", b"0%x")) % size + extension + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]
    return out + b"0\r\n" + (b"X-Trailer: 1\r\n" if trailers and rng.random() < 0.2 else b"") + b"\r\n"


def request(rng: random.Random) -> bytes:
    """One request; mostly valid."""
    method = rng.choice((b"GET", b"POST", b"POST", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"))
    target = rng.choice(
        (
            *(b"/models/m/x", b"/models/m/x?a=%20&b", b"/v2/models/m/infer", b"/v2/models/m", b"/models/none/x"),
            *(b"/v2", b"http://other:81/models/m/x", b"/v1/completions", b"/models/m//x", b"/", b"*"),
        )
    )
    body = rng.choice((b"", b"{}", b'{"model": "m"}', bytes(rng.choices(range(256), k=rng.randint(1, 300)))))
    fields: Fields = [(b"Host", rng.choice((b"gw", b"gw:8080", b"[::1]")))]
    for _ in range(rng.choice((0, 0, 1, 3))):
        fields.append(
            rng.choice(
                (
                    (b"X-A", b"b"),
                    (b"x-empty", b""),
                    (b"X-Text", b"\xc3\xa9 \t tab"),
                    (b"Connection", b"X-A, keep-alive"),
                    (b"Accept-Encoding", b"gzip"),
                    (b"Upgrade", b"websocket"),
                    (b"TE", b"trailers"),
                    (b"X-Forwarded-For", b"6.6.6.6"),
                    (b"Cookie", b"a=b"),
                    (b"traceparent", b"00-%016x-01" % rng.getrandbits(64)),
                    (b"tracestate", b"a=%d" % rng.getrandbits(9)),
                    (b"Content-Type", b"application/json"),
                )
            )
        )
    framing = rng.random()
    data = body
    if framing < 0.4:
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing < 0.75:
        fields.append((b"Transfer-Encoding", b"chunked"))
        data = chunk(rng, body)
    elif framing < 0.85:
        data = b""
    else:
        wrong: Fields = rng.choice(
            (
                [(b"Content-Length", b"%d" % len(body)), (b"Transfer-Encoding", b"chunked")],
                [(b"Content-Length", b"%d" % len(body)), (b"Content-Length", b"%d" % (len(body) + 1))],
                [(b"Content-Length", b"%d, %d" % (len(body), len(body)))],
                [(b"Content-Length", b"+%d" % len(body))],
                [(b"Transfer-Encoding", b"gzip, chunked")],
                [(b"Transfer-Encoding", b"identity")],
                [(b"Transfer-Encoding ", b"chunked")],
            )
        )
        fields += wrong
        data = rng.choice((body, chunk(rng, body)))
    rng.shuffle(fields)
    version = b"HTTP/1.0" if rng.random() < 0.05 else b"HTTP/1.1"
    head = b"%s %s %s\r\n" % (method, target, version) + b"".join(n + b": " + v + b"\r\n" for n, v in fields)
    made = head + b"\r\n" + data
    return mutate(rng, made) if rng.random() < 0.35 else made


def ordinary(rng: random.Random) -> bytes:
    """One request as most clients send them."""
    method = rng.choice((b"GET", b"HEAD", b"POST", b"POST", b"POST"))
    target = rng.choice((b"/models/m/x?a=%20&b", b"/v2/models/m/infer", b"/v2/models/m", b"/v1/chat/completions"))
    size = rng.choice((0, 1, 300, 5_000, 70_000, 300_000))
    body = b'{"n": "%b", "model": "m"}' % (b"x" * size) if target.startswith(b"/v1") else rng.randbytes(size)
    fields: Fields = [(b"Host", b"gw:8080")]
    if method == b"POST" or rng.random() < 0.2:
        fields.append((rng.choice((b"Content-Length", b"content-length", b"CONTENT-LENGTH")), b"%d" % len(body)))
    else:
        body = b""
    for one in (
        (b"Connection", b"keep-alive"),
        (b"Content-Type", b"application/json"),
        (b"User-Agent", b"curl/8 (\xc3\xa9)"),
        (
            rng.choice((b"X-Request-Id", b"x-request-id")),
            rng.choice((b"mine-7", b"b%d" % rng.getrandbits(9), b"no id")),
        ),
        (b"Traceparent", rng.choice((b"00-%016x-01" % rng.getrandbits(64), b"\xc3\xa9 \t tab", b"", b"\0"))),
        (b"tracestate", b"a=%d" % rng.getrandbits(9)),
        (b"X-Forwarded-For", b"6.6.6.6"),
    ):
        if rng.random() < 0.3:
            fields.append(one)
    if rng.random() < 0.1:
        fields += [(b"X-Forwarded-For", b"7.7.7.7"), (b"Accept", b"a/b"), (b"accept", b"*/*")]
    if rng.random() < 0.2:
        fields += [(b"Tracestate", b"b=%d" % rng.getrandbits(9)), (b"baggage", b"c"), (b"baggage", b"d")]
    rng.shuffle(fields)
    head = b"%s %s HTTP/1.1\r\n" % (method, target) + b"".join(n + b": " + v + b"\r\n" for n, v in fields)
    made = head + b"\r\n" + body
    return mutate(rng, made) if rng.random() < 0.1 else made


def stream(rng: random.Random) -> Stream:
    """Some requests, pipelined."""
    kinds = (request, request, ordinary) if rng.random() < 0.5 else (ordinary,)
    return Stream(b"".join(rng.choice(kinds)(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))) + LAST)


def cut(rng: random.Random, whole: Stream) -> Stream:
    """The same bytes in pieces."""
    count = min(len(whole.data) - 1, rng.choice((1, 1, 2, 3, 8)))
    return Stream(whole.data, tuple(sorted(rng.sample(range(1, len(whole.data)), count))))


def meanings(data: bytes) -> list[tuple[bytes, bytes]]:
    """(method, body) of the requests that h11 reads in a stream, up to where it finds no more."""
    found: list[tuple[bytes, bytes]] = []
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    http.receive_data(data)
    http.receive_data(b"")
    method, body = b"", b""
    with contextlib.suppress(h11.RemoteProtocolError, h11.LocalProtocolError):
        while True:
            event = http.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, body))
                head = h11.Response(status_code=200, headers=[("Content-Length", "0")])
                http.send(head)
                http.send(h11.EndOfMessage())
                http.start_next_cycle()
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
                break
    return found


def is_first_of(some: list[tuple[bytes, bytes]], all_: list[tuple[bytes, bytes]]) -> bool:
    """Whether some are among all in this order; what the gateway answers itself is not among them."""
    rest = iter(all_)
    return all(one in rest for one in some)


def undeclared(forwarded: tuple[Forwarded, ...]) -> bool:
    """Whether a trailer field became a field of a request."""
    return any(name == b"x-trailer" for request in forwarded for name, _ in request.fields)


def outline(answers: bytes) -> list[bytes]:
    """The answers, without what may depend on where a stream was cut: why a request is malformed, who ends first."""
    found = re.split(rb"(?=HTTP/1\.1 \d{3} )", answers.replace(b"Connection: close\r\n", b""))
    return [b"400" if one.startswith(b"HTTP/1.1 400 ") else one for one in found if one]


def alike(whole: bytes, parts: bytes, *, chunked: bool) -> bool:
    """Whether two streams of answers are the same.

    One request may have its answer already when its body turns out to be malformed; and after a request in chunks the
    connection may have ended, where more had come with it.
    """
    first, second = outline(whole), outline(parts)
    shorter = min(len(first), len(second))
    if first == second or (chunked and first[:shorter] == second[:shorter]):
        return True
    if not first or first[-1] != b"400" or first[:-1] != second[: len(first) - 1]:
        return False
    rest = second[len(first) - 1 :]
    return len(rest) == 1 or (len(rest) == 2 and rest[1] == b"400")


def differ(one: Observation, other: Observation, *, chunked: bool) -> str:
    """Empty, or what two observations of the same bytes do not agree on."""
    shorter = min(len(one.forwarded), len(other.forwarded))
    same = one.forwarded == other.forwarded
    if not same and not (chunked and one.forwarded[:shorter] == other.forwarded[:shorter]):
        return f"other requests are forwarded\n{one.forwarded}\n{other.forwarded}"
    if not alike(one.answers, other.answers, chunked=chunked):
        return f"the answers are others\n{one.answers!r}\n{other.answers!r}"
    return ""


async def check_stream(rig: Rig, full: Rig, rng: random.Random) -> str:
    """Empty, or what went wrong with one random stream."""
    whole = stream(rng)
    parts = cut(rng, whole)
    first = await rig.observe(whole)
    second = await rig.observe(parts)
    chunked = b"chunked" in whole.data.lower()
    if told := differ(first, second, chunked=chunked):
        return f"whole and cut, {told}\n{parts}"
    if told := differ(first, await full.observe(whole), chunked=chunked):
        return f"fast path and full path, {told}\n{whole}"
    longer = max(first.forwarded, second.forwarded, key=len)
    if undeclared(longer) and b"0\r\nX-Trailer" in whole.data:
        return f"a trailer became a field: {whole}\n{longer}"
    # h11 takes every HTTP/1.0 request for the last of its connection.
    # What it refuses and the gateway's parser reads in one way only: empty lines and spaces around a request line.
    lenient = re.search(
        rb"HTTP/1\.0|(?:^|\n)[\r\n]+[A-Z]+ |[A-Z]  |  HTTP/1|^[\r\n]|\n\r?[A-Z]+ |\r[A-Z]+ [/*h]", whole.data
    )
    if not lenient and not is_first_of([(f.method, f.body) for f in longer], meanings(whole.data)):
        return f"forwarded is what h11 does not read: {whole}\n{longer}\n{meanings(whole.data)}"
    if re.search(rb"(?m)^HTTP/1.1 50[0-4] ", first.answers.replace(b"HTTP/1.1 501 ", b"")):
        return f"an error of the gateway's own: {whole}\n{first.answers!r}"
    return ""


# --- answers ---


def answer(rng: random.Random) -> bytes:
    """One answer of a replica; mostly valid."""
    status = rng.choice(
        (b"200 OK", b"200 OK", b"200 OK", b"404 Not Found", b"500 Oops", b"204 No Content", b"304 Same")
    )
    body = bytes(rng.choices(range(256), k=rng.choice((0, 1, 40, 300))))
    fields: Fields = [(b"Content-Type", b"text/plain"), (b"Connection", b"X-Hop"), (b"X-Hop", b"1")][
        : rng.randint(0, 3)
    ]
    framing = rng.random()
    data = body
    if status[:3] in (b"204", b"304"):
        data = b""
    elif framing < 0.4:
        fields.append((b"Content-Length", b"%d" % len(body)))
    elif framing < 0.8:
        fields.append((b"Transfer-Encoding", b"chunked"))
        data = chunk(rng, body)
    elif framing < 0.9:
        fields += [(b"Content-Length", b"%d" % len(body)), (b"Transfer-Encoding", b"chunked")]
        data = chunk(rng, body)
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" if rng.random() < 0.1 else b""
    head = b"HTTP/1.1 " + status + b"\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in fields) + b"\r\n"
    made = early + head + data
    what = rng.random()
    if what < 0.25:
        return mutate(rng, made)
    if what < 0.45:
        return made[: rng.randrange(len(made))]
    return made


def verdict(data: bytes, end: str, method: str) -> tuple[int, bytes] | None:
    """Status and body of an answer as h11 reads it; None where it is not whole or not valid."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    http.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    if end == "close":
        http.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                names = [n for n, _ in event.headers]
                if b"content-length" in names and b"transfer-encoding" in names:
                    return None
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body
            elif not isinstance(event, h11.InformationalResponse) or event.status_code == 101:
                return None
    except h11.RemoteProtocolError:
        return None


async def check_answer(rig: Rig, full: Rig, rng: random.Random) -> str:
    """Empty, or what went wrong with one random answer."""
    data, method = answer(rng), rng.choice(("GET", "GET", "POST", "HEAD"))
    end = rng.choice(("close", "close", "reset"))
    count = min(len(data) - 1, rng.choice((0, 1, 2, 8))) if len(data) > 1 else 0
    at = [0, *sorted(rng.sample(range(1, len(data)), count)), len(data)] if data else [0, 0]
    pieces = [data[a:b] for a, b in itertools.pairwise(at)]
    expected = verdict(data, end, method)
    fast = await rig.fetch(pieces or [b""], end, method)
    got = None if fast is None else (fast.status, fast.body)
    said = f"{method} answered with {pieces} and {end}: expected {expected}, got {got}"
    if end == "close" and sans(fast) != sans(slow := await full.fetch(pieces or [b""], end, method)):
        return f"{said}\nfast path {fast}\nfull path {slow}"
    if expected is not None and end == "close":
        return "" if got == expected else said
    if got is None or got[0] == 502:
        # None was whole; or a reset overtook what was sent before it.
        return ""
    return "" if got == expected else said


def sans(answer: Response | None) -> tuple[object, ...] | None:
    """An answer without what differs between two that are the same."""
    if answer is None:
        return None
    kept = [field for field in answer.headers if field[0].lower() not in ("x-request-id", "server-timing", "date")]
    return answer.status, answer.reason, kept, answer.body, answer.trailers, answer.informational


async def fuzz(seed: int, *, seconds: float = 0.0, count: int = 0) -> tuple[int, list[str]]:
    """Checks until the time is up or so many are done: how many were made, and what went wrong."""
    rig, full = Rig(), Rig(fast=False)
    await rig.start()
    await full.start()
    end = time.monotonic() + seconds
    made, wrong = 0, []
    try:
        while (count and made < count) or (seconds and time.monotonic() < end):
            # Each check has a seed of its own, so that it can be repeated alone.
            rng = random.Random(f"{seed}.{made}")
            check = check_stream if made % 2 else check_answer
            try:
                problem = await check(rig, full, rng)
            except (AssertionError, TimeoutError) as error:
                problem = f"{check.__name__} does not end: {error}"
            if problem:
                wrong.append(f"[{seed}.{made}] {problem}")
            made += 1
    finally:
        await rig.stop()
        await full.stop()
    return made, wrong


def main() -> int:
    """Fuzz for a while; exit code 1 where something went wrong."""
    import logging

    logging.getLogger("gateway").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(prog="python -m tests.gateway.fuzz", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    made, wrong = uvloop.run(fuzz(options.seed, seconds=options.seconds))
    print("\n\n".join(wrong[:20]))
    print(f"seed {options.seed}: {made} checks, {len(wrong)} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
