"""Worker processes as a supervisor starts them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from gateway import native, wire

pytestmark = pytest.mark.integration

NONE = "no, there is none for these sources; `make native` compiles it"

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\n{}"


class Process:
    """A worker; its ports are read from its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.admin_port = 0
        self.lines: list[str] = []

    async def started(self) -> None:
        assert self.process.stderr is not None
        while not self.port:
            line = (await asyncio.wait_for(self.process.stderr.readline(), 20)).decode()
            assert line, self.lines
            self.lines.append(line)
            if found := re.search(r"listens on .*?:(\d+), admin on .*?:(\d+)", line):
                self.port, self.admin_port = int(found[1]), int(found[2])

    async def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)


class Fleet:
    """Starts workers over one folder."""

    def __init__(self, folder: Path, kit) -> None:
        self.folder = folder
        self.kit = kit
        self.made: list[Process] = []
        self.clients: list[Any] = []

    def cache(self, *models: wire.ModelEntry, workers: int = 1, **fields: Any) -> None:
        for index in range(workers):
            text = wire.Snapshot(term=1, number=1, models=models, **fields).model_dump_json()
            (self.folder / f"table-{index}.json").write_text(text)

    async def spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.worker", *arguments, stderr=asyncio.subprocess.PIPE
        )

    async def start(self, index: int = 0, *, workers: int = 1, port: int = 0, more: Iterable[str] = ()) -> Process:
        process = Process(
            await self.spawn(
                *("--listen", f"127.0.0.1:{port}", "--index", str(index), "--workers", str(workers)),
                *("--controller", str(self.folder / "wire.sock"), "--limits", str(self.folder / "limits.shm")),
                *("--cache", str(self.folder / f"table-{index}.json")),
                *more,
            )
        )
        self.made.append(process)
        await process.started()
        return process

    async def client(self, port: int):
        client = self.kit.Client(*await asyncio.open_connection("127.0.0.1", port))
        self.clients.append(client)
        return client

    async def get(self, port: int, target: str):
        client = await self.client(port)
        answer = await client.ask(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await client.close()
        return answer

    async def unready(self, worker: Process) -> None:
        """Wait until a worker says that it is not ready."""
        for _ in range(500):
            if (await self.get(worker.admin_port, "/readyz")).status == 503:
                return
            await asyncio.sleep(0.01)
        pytest.fail("the worker stays ready")


@pytest.fixture
async def fleet(tmp_path: Path, kit) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, kit)
    yield made
    for process in made.made:
        await process.end(signal.SIGKILL)
    for client in made.clients:
        await client.close()


def entry(replica, **fields) -> wire.ModelEntry:
    limit = fields.pop("concurrency", 0)
    endpoint = wire.EndpointEntry(id="m-0", host="127.0.0.1", port=replica.port, concurrency=limit, slot=3)
    return wire.ModelEntry(name="m", endpoints=(endpoint,), **fields)


async def test_a_worker_serves_its_cached_table_without_a_controller(fleet, replica):
    fleet.cache(entry(await replica()))
    worker = await fleet.start()
    client = await fleet.client(worker.port)
    assert (await client.ask(INFER)).status == 200
    await client.close()
    assert (await fleet.get(worker.admin_port, "/readyz")).status == 200
    assert (await fleet.get(worker.admin_port, "/healthz")).status == 200
    page = (await fleet.get(worker.admin_port, "/metrics")).body.decode()
    assert 'gateway_requests_total{code="200",model="m"} 1.0' in page
    assert "gateway_controller_connected 0.0" in page
    assert (await fleet.get(worker.admin_port, "/other")).status == 404
    assert await worker.end() == 0


async def test_a_worker_at_work_is_one_thread(fleet, replica):
    """With a second one, even one that sleeps, the kernel and the C library take locks in each call."""
    fleet.cache(entry(await replica()))
    worker = await fleet.start()
    client = await fleet.client(worker.port)
    assert (await client.ask(INFER)).status == 200
    assert (await fleet.get(worker.admin_port, "/metrics")).status == 200
    assert len(list(Path(f"/proc/{worker.process.pid}/task").iterdir())) == 1


async def test_a_worker_without_a_table_is_not_ready(fleet):
    worker = await fleet.start()
    assert (await fleet.get(worker.admin_port, "/readyz")).status == 503
    assert (await fleet.get(worker.admin_port, "/healthz")).status == 200
    assert await worker.end(signal.SIGINT) == 0


async def test_sigterm_under_load_loses_no_request(fleet, replica, kit):
    async def answer(seen, writer, reader):
        await asyncio.sleep(0.005)
        writer.write(OK)

    one = await replica(answer)
    fleet.cache(entry(one))
    worker = await fleet.start()
    answered = failed = 0

    async def visit() -> None:
        nonlocal answered, failed
        while True:
            try:
                client = await fleet.client(worker.port)
            except ConnectionRefusedError:
                return
            while True:
                try:
                    response = await client.ask(INFER)
                except (kit.Truncated, ConnectionError):
                    failed += 1
                    break
                answered += 1
                if response.all("Connection") == ["close"]:
                    break
            await client.close()

    visits = [asyncio.create_task(visit()) for _ in range(16)]
    await kit.until(lambda: answered > 100)
    assert await worker.end() == 0
    await asyncio.gather(*visits)
    assert failed == 0
    assert answered == len(one.seen)


async def test_sigterm_waits_for_a_stream_and_turns_unready_first(fleet, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await goes_on.wait()
        writer.write(b"4\r\nhalf\r\n0\r\n\r\n")

    fleet.cache(entry(await replica(answer)))
    worker = await fleet.start()
    client = await fleet.client(worker.port)
    client.send(INFER)
    client.expect()
    assert (await client.event()).status_code == 200
    assert (await client.event()).data == b"half"
    worker.process.send_signal(signal.SIGTERM)
    await fleet.unready(worker)
    goes_on.set()
    assert (await client.event()).data == b"half"
    assert type(await client.event()).__name__ == "EndOfMessage"
    assert await worker.end() == 0


async def test_a_second_signal_cuts_the_wait_short(fleet, replica, kit):
    async def answer(seen, writer, reader):
        await reader.read()

    one = await replica(answer)
    fleet.cache(entry(one))
    worker = await fleet.start()
    client = await fleet.client(worker.port)
    client.send(INFER)
    await kit.until(lambda: one.seen)
    worker.process.send_signal(signal.SIGTERM)
    await fleet.unready(worker)
    assert await worker.end() == 0


async def test_two_workers_hold_a_limit_of_one(fleet, replica, kit):
    running = most = 0

    async def answer(seen, writer, reader):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        writer.write(OK)

    fleet.cache(entry(await replica(answer), concurrency=1), workers=2)
    first = await fleet.start(0, workers=2)
    second = await fleet.start(1, workers=2, port=first.port)
    assert second.port == first.port

    async def visit() -> list[int]:
        client = await fleet.client(first.port)
        statuses = [(await client.ask(INFER)).status for _ in range(5)]
        await client.close()
        return statuses

    statuses = await asyncio.gather(*(visit() for _ in range(16)))
    assert {s for several in statuses for s in several} == {200}
    assert most == 1
    served = [
        int(float(found[1]))
        for worker in (first, second)
        if (
            found := re.search(
                r'code="200",model="m"} (\S+)', (await fleet.get(worker.admin_port, "/metrics")).body.decode()
            )
        )
    ]
    assert sum(served) == 80


async def test_a_killed_worker_leaves_no_place_taken_and_others_need_not_wait_for_its_successor(fleet, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        await goes_on.wait()
        writer.write(OK)

    one = await replica(answer)
    fleet.cache(entry(one, concurrency=1), workers=2)
    killed = await fleet.start(0, workers=2)
    other = await fleet.start(1, workers=2)
    client = await fleet.client(killed.port)
    client.send(INFER)
    await kit.until(lambda: one.seen)
    waiting = await fleet.client(other.port)
    waiting.send(INFER)
    await killed.end(signal.SIGKILL)
    await kit.until(lambda: len(one.seen) == 2)
    goes_on.set()
    assert (await waiting.response()).status == 200


async def test_two_workers_have_one_rate_however_requests_come(fleet, replica, kit):
    key = "tgm_0000000a_secret"
    hashed = wire.TenantKey(id="0000000a", sha256=hashlib.sha256(key.encode()).hexdigest())
    limit = wire.TenantLimit(requests_per_s=0.001, burst=20, slot=4000)
    tenant = wire.TenantEntry(name="acme", keys=(hashed,), limits=(limit,))

    async def answer(seen, writer, reader):
        writer.write(OK)

    fleet.cache(entry(await replica(answer)), workers=2, settings=wire.Settings(tenants=(tenant,)))
    workers = [await fleet.start(n, workers=2) for n in range(2)]
    ask = INFER.replace(b"\r\n", f"\r\nX-API-Key: {key}\r\n".encode(), 1)
    clients = [await fleet.client(worker.port) for worker in workers]
    statuses = [(await clients[0].ask(ask)).status for _ in range(17)]
    assert statuses == [200] * 17
    statuses = [(await clients[n % 2].ask(ask)).status for n in range(6)]
    assert statuses == [200] * 3 + [429] * 3
    # Who comes anew knows what was taken.
    await workers[0].end(signal.SIGKILL)
    successor = await fleet.start(0, workers=2)
    assert (await (await fleet.client(successor.port)).ask(ask)).status == 429


async def test_an_address_in_use_is_one_line_and_exit_code_2(fleet, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await fleet.spawn(
            *("--listen", f"127.0.0.1:{port}", "--index", "0", "--controller", "c", "--limits", "l"),
            *("--cache", str(tmp_path / "t")),
        )
        _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().count("\n") == 1
    assert f"127.0.0.1:{port}" in said.decode()


@pytest.mark.parametrize(
    "arguments",
    [("--listen", "nowhere", "--index", "0"), ("--listen", "a:1", "--index", "2", "--workers", "2")],
)
async def test_wrong_options_are_exit_code_2(fleet, arguments):
    process = await fleet.spawn(*arguments, "--controller", "c", "--limits", "l", "--cache", "t")
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"error" in said


TRITON_CLIENT = """
import sys
import numpy as np
import tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("m")
assert client.get_server_metadata()["name"] == "tangram"
assert client.get_model_metadata("m")["name"] == "m"
tensor = http.InferInput("IN", [1, 3], "FP32")
tensor.set_data_from_numpy(np.array([[1, 2, 3]], dtype=np.float32), binary_data=True)
wanted = [http.InferRequestedOutput("OUT", binary_data=True)]
for _ in range(3):
    result = client.infer("m", [tensor], outputs=wanted, request_compression_algorithm=None)
    assert result.as_numpy("OUT").tolist() == [[1, 2, 3]], result.get_response()
try:
    client.infer("none", [tensor])
except http.InferenceServerException as error:
    assert "none" in error.message() and error.status() == "404", error
else:
    raise SystemExit("an unknown model was served")
"""


async def test_tritons_client_works_through_the_gateway(fleet, replica, tmp_path):
    async def answer(seen, writer, reader):
        if seen.method == "GET":
            body = json.dumps({"name": "m", "versions": ["1"], "platform": "x", "inputs": [], "outputs": []}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            return
        size = int(seen["Inference-Header-Content-Length"])
        tensor = seen.body[size:]
        assert json.loads(seen.body[:size])["inputs"][0]["parameters"]["binary_data_size"] == len(tensor)
        output = {"name": "OUT", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": len(tensor)}}
        head = json.dumps({"model_name": "m", "model_version": "1", "outputs": [output]}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%s%s"
            % (len(head), len(head) + len(tensor), head, tensor)
        )

    one = await replica(answer)
    fleet.cache(entry(one))
    worker = await fleet.start()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", "-c", TRITON_CLIENT, f"127.0.0.1:{worker.port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    assert len({seen.connection for seen in one.seen}) == 1


@pytest.mark.parametrize("arguments", [(), ("--no-native",)])
async def test_it_says_whether_its_code_is_compiled(fleet, arguments):
    fleet.cache()
    worker = await fleet.start(more=arguments)
    said = [line.partition("native code: ")[2].strip() for line in worker.lines if "native code: " in line]
    compiled = (native.home() / native.key()).is_dir()
    assert said == ["no, --no-native" if arguments else "yes" if compiled else NONE]
