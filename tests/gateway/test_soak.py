"""Memory of a worker: over many clients that leave, and while large bodies meet a slow end.

The sizes here are those of a quick run. TANGRAM_SOAK=1 (`make soak`) takes the full ones: 10,000 clients that leave,
bodies of 1 GB.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import time

import psutil
import pytest

from gateway import wire

FULL = os.environ.get("TANGRAM_SOAK") == "1"
LEAVES = 10_000 if FULL else 1_500
#: So many before: by then a worker has what it keeps for good, pools and places for many at a time.
WARM = 2_000
BODY = (1 << 30) if FULL else (96 << 20)
MIB = 1 << 20
BLOCK = bytes(256 * 1024)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600 if FULL else 120)]


async def gauge(port: int, name: str) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    values = [float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)]
    assert values, page
    return sum(values)


def rss(worker) -> int:
    return psutil.Process(worker.pid).memory_info().rss


class Peak:
    """The most memory that a worker had, above what it had at first."""

    def __init__(self, worker) -> None:
        self._worker = worker
        self._first = rss(worker)
        self.grown = 0

    async def watch(self) -> None:
        while True:
            self.grown = max(self.grown, rss(self._worker) - self._first)
            await asyncio.sleep(0.02)


def entry(*endpoints: wire.EndpointEntry, **fields) -> wire.ModelEntry:
    return wire.ModelEntry(name=fields.pop("name", "m"), endpoints=endpoints, **fields)


async def test_clients_that_leave_at_every_stage_leave_nothing_behind(run_worker, replica, kit):
    rng = random.Random(5)
    arrived: dict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)
    late: list[float] = []

    async def answer(seen, writer, reader):
        """Half an answer if asked for it; then the end of the connection is waited for, and timed."""
        stage, left = seen["X-Stage"], seen["X-Id"]
        arrived[left].set()
        if stage == "streaming":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        try:
            while await reader.read(65536):
                pass
        finally:
            late.append(time.monotonic() - gone.get(left, time.monotonic()))
        return "close"

    one = await replica(answer, read_body=False)
    at = wire.EndpointEntry(id="m-0", host="127.0.0.1", port=one.port)
    worker = run_worker(entry(at), entry(name="asleep", queue_max_requests=10_000))
    gone: dict[str, float] = {}
    head = "POST /v2/models/{}/infer HTTP/1.1\r\nHost: a\r\nX-Stage: {}\r\nX-Id: {}\r\nContent-Length: {}\r\n\r\n"

    async def visit(n: int) -> None:
        stage = ("head", "uploading", "queued", "waiting", "streaming")[n % 5]
        reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
        model = "asleep" if stage == "queued" else "m"
        size = 1000 if stage == "uploading" else 2
        request = head.format(model, stage, n, size).encode() + b"{}"
        writer.write(request[:40] if stage == "head" else request)
        if stage in ("uploading", "waiting"):
            await asyncio.wait_for(arrived[str(n)].wait(), 10)
        elif stage == "streaming":
            await reader.readuntil(b"half")
        else:
            await asyncio.sleep(0.005 * rng.random())
        gone[str(n)] = time.monotonic()
        if rng.random() < 0.5:
            kit.reset(writer)
        else:
            writer.close()

    async def crowd(numbers: range) -> None:
        pending = iter(numbers)

        async def one_after_the_other() -> None:
            for n in pending:
                await visit(n)

        await asyncio.gather(*(one_after_the_other() for _ in range(20)))
        end = time.monotonic() + 20
        while any(
            [await gauge(worker.admin_port, g) for g in ("gateway_inflight_requests{", "gateway_queued_requests{")]
        ):
            assert time.monotonic() < end, "gauges do not return to 0"
            await asyncio.sleep(0.05)

    await crowd(range(WARM))
    before = rss(worker)
    await crowd(range(WARM, WARM + LEAVES))
    grown = rss(worker) - before
    print(f"\n{LEAVES} clients left: {grown / MIB:+.2f} MiB; slowest cancellation {max(late):.2f} s")
    assert grown < 2 * MIB
    assert max(late) < 1.0
    await kit.until(lambda: one.open == 0)


async def test_a_large_answer_to_a_slow_reader_does_not_fill_memory(run_worker, replica):
    async def answer(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY)
        for _ in range(BODY // len(BLOCK)):
            writer.write(BLOCK)
            await writer.drain()

    one = await replica(answer)
    worker = run_worker(entry(wire.EndpointEntry(id="m-0", host="127.0.0.1", port=one.port)))
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port, limit=65536)
    peak = Peak(worker)
    watching = asyncio.create_task(peak.watch())
    writer.write(b"GET /models/m/x HTTP/1.1\r\nHost: a\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    left = BODY
    while left:
        if left % (BODY // 8) < 65536:
            await asyncio.sleep(0.2)
        part = await reader.read(65536)
        assert part
        left -= len(part)
    watching.cancel()
    writer.close()
    print(f"\nan answer of {BODY / MIB:.0f} MiB: {peak.grown / MIB:+.2f} MiB")
    assert peak.grown < 16 * MIB


@pytest.mark.parametrize("target", ["/v2/models/m/infer", "/v1/audio/transcriptions"])
async def test_a_large_upload_to_a_slow_model_does_not_fill_memory(run_worker, replica, target):
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x\r\n\r\n' if "audio" in target else b""

    async def answer(seen, writer, reader):
        left = BODY + len(form)
        while left:
            if left % (BODY // 8) < 65536:
                await asyncio.sleep(0.2)
            part = await reader.read(min(left, 65536))
            assert part
            left -= len(part)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    one = await replica(answer, read_body=False)
    worker = run_worker(entry(wire.EndpointEntry(id="m-0", host="127.0.0.1", port=one.port)))
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    peak = Peak(worker)
    watching = asyncio.create_task(peak.watch())
    writer.write(
        f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {BODY + len(form)}\r\n\r\n".encode()
        + form
    )
    for _ in range(BODY // len(BLOCK)):
        writer.write(BLOCK)
        await writer.drain()
    assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
    watching.cancel()
    writer.close()
    print(f"\nan upload of {BODY / MIB:.0f} MiB: {peak.grown / MIB:+.2f} MiB")
    assert peak.grown < 16 * MIB
