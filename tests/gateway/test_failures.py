"""Clients that leave, replicas that fail, and models without replicas, through real sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
INFER = "/v2/models/m/infer"


def post(target: str = INFER, body: bytes = b"{}") -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def hang(seen, writer, reader):
    await reader.read()


async def half(seen, writer, reader):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await reader.read()


# --- clients that leave ---


async def test_leaving_while_waiting_for_the_answer_cancels_it(gateway, replica, kit):
    one = await replica(hang)
    gateway.model("m", one)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: one.seen)
    client.leave()
    await kit.until(lambda: one.open == 0, "the replica sees that nobody waits")
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().cancelled == 1
    assert gateway.meter().codes == {499: 1}


async def test_leaving_within_the_answer_cancels_it(gateway, replica, kit):
    one = await replica(half)
    gateway.model("m", one)
    client = await gateway.client()
    client.send(post())
    assert b"half" in await client.reader.readuntil(b"half")
    client.leave()
    await kit.until(lambda: one.open == 0 and gateway.quiet)
    assert gateway.meter().cancelled == 1


async def test_leaving_within_the_upload_cancels_it(gateway, replica, kit):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    client.send(post(body=b"x" * 100)[:-50])
    await kit.until(lambda: one.seen)
    client.leave()
    await kit.until(lambda: one.open == 0 and gateway.quiet)
    assert gateway.meter().cancelled == 1


async def test_leaving_the_queue_frees_its_place(gateway, replica, kit):
    gateway.model("m")
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: gateway.meter().queue.value == 1)
    client.leave()
    await kit.until(lambda: gateway.quiet)
    one = await replica()
    gateway.model("m", one)
    assert not one.seen
    assert gateway.meter().cancelled == 1


async def test_leaving_before_the_head_is_whole_is_no_request(gateway, kit):
    gateway.model("m")
    client = await gateway.client()
    client.send(b"POST /v2/mod")
    await kit.until(lambda: gateway.front.clients == 1)
    client.leave()
    await kit.until(lambda: gateway.front.clients == 0)
    assert gateway.meter().arrivals == 0


async def test_leaving_within_a_body_that_names_the_model_is_counted(gateway, kit):
    client = await gateway.client()
    client.send(post("/v1/completions", b'{"model":"m"}')[:-5])
    await kit.until(lambda: any(c._request_in_progress for c in gateway.front._server.connections))
    client.leave()
    await kit.until(lambda: gateway.dispatcher.meter.unrouted == {499: 1})


async def test_leaving_while_the_connection_is_made_leaves_none_behind(gateway, replica, kit):
    one = await replica()
    pool = gateway.pools.get("m-0", "127.0.0.1", one.port)
    for turns in [*range(12)] * 8:
        connecting = asyncio.create_task(pool.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        (made,) = await asyncio.gather(connecting, return_exceptions=True)
        if not isinstance(made, asyncio.CancelledError):
            made.close()
    await kit.until(lambda: not pool.open and not one.open)


# --- replicas that fail ---


async def test_a_broken_connection_is_repeated_on_another_replica(gateway, replica, kit):
    bad, good = await replica(kit.fixed(b"", "reset")), await replica()
    gateway.model("m", bad, good)
    for _ in range(20):
        assert (await gateway.ask(post(body=b"tensor"))).body == b"tensor"
    assert gateway.meter().retries == len(bad.seen) > 0
    assert gateway.meter().codes == {200: 20}


async def test_a_repeat_does_not_meet_the_same_replica_before_it_has_ended(gateway, replica, kit):
    loop, good = asyncio.get_running_loop(), await replica()

    async def die(seen, writer, reader):
        # As a process that is killed: it resets what it holds, and a little later its port is closed.
        loop.call_later(0.01, lambda: ending.append(loop.create_task(dying.stop())))
        return "reset"

    ending: list[asyncio.Task[None]] = []
    dying = await replica(die)
    gateway.model("m", dying)
    asked = asyncio.create_task(gateway.ask(post(body=b"tensor")))
    await kit.until(lambda: ending and ending[0].done())
    gateway.model("m", good)
    assert (await asked).body == b"tensor"
    assert (len(dying.seen), len(good.seen)) == (1, 1)


async def test_what_is_not_safe_to_repeat_is_sent_once(gateway, replica, kit):
    bad = await replica(kit.fixed(b"", "reset"))
    gateway.model("m", bad)
    for target, body in (("/v1/chat/completions", b'{"model":"m"}'), ("/models/m/x", b"{}")):
        answer = await gateway.ask(post(target, body))
        assert answer.status == 502
    assert len(bad.seen) == 2
    assert gateway.meter().errors == 2


async def test_the_spec_may_allow_what_is_not_safe(gateway, replica, kit):
    bad = await replica(kit.fixed(b"", "reset"))
    gateway.model("m", bad, retry_all_methods=True, retry_attempts=2)
    assert (await gateway.ask(post("/models/m/x"))).status == 502
    assert len(bad.seen) == 3


async def test_a_body_larger_than_the_replay_buffer_is_sent_once(gateway, replica, kit):
    bad = await replica(kit.fixed(b"", "reset"))
    gateway.model("m", bad)
    assert (await gateway.ask(post(body=b"x" * 300_000))).status == 502
    assert len(bad.seen) == 1


async def test_a_partly_uploaded_body_is_repeated_from_its_start(gateway, replica, kit):
    times = 0

    async def answer(seen, writer, reader):
        nonlocal times
        times += 1
        if times == 1:
            await reader.readexactly(3)
            return "reset"
        seen.body = await kit.read_body(seen, reader)
        await kit.echo(seen, writer, reader)
        return None

    one = await replica(answer, read_body=False)
    gateway.model("m", one)
    client = await gateway.client()
    client.send(post(body=b"onetwo")[:-3])
    await kit.until(lambda: len(one.seen) == 2)
    client.send(b"two")
    assert (await client.response()).body == b"onetwo"


async def test_a_replica_that_refuses_connections_costs_no_request(gateway, replica):
    dead, good = await replica(), await replica()
    await dead.stop()
    gateway.model("m", dead, good)
    for _ in range(10):
        assert (await gateway.ask(post("/models/m/x"))).status == 200
    assert len(good.seen) == 10


async def test_requests_wait_for_the_only_replica_to_come_back(gateway, replica, kit):
    one = await replica()
    await one.stop()
    gateway.model("m", one)
    client = await gateway.client()
    client.send(post("/models/m/x", b"kept"))
    await kit.until(lambda: gateway.meter().queue.value == 1)
    await one.start(one.port)
    assert (await client.response()).body == b"kept"


async def test_a_replica_that_stays_away_gives_503_in_time(gateway, replica):
    one = await replica()
    await one.stop()
    gateway.model("m", one, queue_max_s=0.3)
    answer = await gateway.ask(post())
    assert answer.status == 503
    assert int(answer["Retry-After"]) >= 1


async def test_an_idle_connection_that_the_replica_closed_is_no_failure(gateway, replica, kit):
    one = await replica(kit.fixed(OK))
    gateway.model("m", one)
    for _ in range(10):
        assert (await gateway.ask(post())).status == 200
        # The replica ends the connection at the very moment of the next request, as a keep-alive timeout would.
        for writer in list(one._writers):
            writer.transport.abort()
    assert gateway.meter().codes == {200: 10}


async def test_no_answer_in_time_is_504_and_is_not_repeated(gateway, replica, kit):
    one = await replica(hang)
    gateway.model("m", one, timeout_s=0.2)
    answer = await gateway.ask(post())
    assert answer.status == 504
    assert len(one.seen) == 1
    await kit.until(lambda: one.open == 0 and gateway.quiet)
    assert gateway.meter().errors == 1


async def test_a_pause_within_the_answer_that_is_too_long_cuts_it(gateway, replica, kit):
    gateway.model("m", await replica(half), timeout_s=0.2)
    with pytest.raises(kit.Truncated):
        await gateway.ask(post())
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().codes == {504: 1}


async def test_an_upload_that_stalls_is_the_clients_fault(gateway, replica, kit):
    gateway.model("m", await replica(), timeout_s=0.2)
    client = await gateway.client()
    client.send(post(body=b"x" * 100)[:-50])
    assert (await client.response()).status == 408
    await kit.until(lambda: gateway.quiet)


async def test_a_slow_upload_that_moves_does_not_time_out(gateway, replica):
    gateway.model("m", await replica(), timeout_s=1.0)
    client = await gateway.client()
    request = post(body=b"x" * 10)
    client.send(request[:-10])
    for byte in request[-10:]:
        client.send(bytes([byte]))
        await asyncio.sleep(0.12)
    assert (await client.response()).body == b"x" * 10


async def test_errors_of_a_replica_are_passed_on_and_counted(gateway, replica, kit):
    gateway.model("m", await replica(kit.fixed(b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno")))
    answer = await gateway.ask(post())
    assert (answer.status, answer.reason, answer.body) == (500, "Oops", b"no")
    meter = gateway.meter()
    assert (meter.completions, meter.errors, meter.endpoints["m-0"].failures) == (1, 1, 1)


# --- queues ---


async def test_requests_wait_while_a_model_starts_from_zero(gateway, replica, kit):
    gateway.model("m")
    clients = [await gateway.client() for _ in range(20)]
    for n, client in enumerate(clients):
        client.send(post(body=b"%d" % n))
    await kit.until(lambda: gateway.meter().queue.value == 20)
    assert gateway.wakes == ["m"]
    gateway.model("m", await replica())
    answers = [await c.response() for c in clients]
    assert [a.body for a in answers] == [b"%d" % n for n in range(20)]
    assert "start;dur=0.0" not in answers[0]["Server-Timing"]
    await kit.until(lambda: gateway.quiet)


async def test_a_limit_holds_and_waiters_go_in_order(gateway, replica, kit):
    goes_on = asyncio.Semaphore(0)

    async def answer(seen, writer, reader):
        await goes_on.acquire()
        writer.write(OK)

    one = await replica(answer)
    gateway.model("m", gateway.endpoint(one, concurrency=2))
    clients = [await gateway.client() for _ in range(6)]
    for n, client in enumerate(clients):
        client.send(post(body=b"%d" % n))
        await kit.until(lambda n=n: gateway.meter().arrivals == n + 1)
    await kit.until(lambda: len(one.seen) == 2 and gateway.meter().queue.value == 4)
    for done in range(1, 7):
        goes_on.release()
        await kit.until(lambda done=done: gateway.meter().completions == done)
        assert gateway.meter().flight.value <= 2
    assert [s.body for s in one.seen[2:]] == [b"2", b"3", b"4", b"5"]


async def test_a_full_queue_is_429_with_retry_after_in_the_shape_of_the_protocol(gateway, replica, kit):
    one = await replica(hang)
    gateway.model("m", gateway.endpoint(one, concurrency=1), queue_max_requests=1)
    for _ in range(2):
        client = await gateway.client()
        client.send(post())
    await kit.until(lambda: gateway.meter().queue.value == 1)
    answer = await gateway.ask(post("/v1/chat/completions", b'{"model":"m"}'))
    assert answer.status == 429
    assert int(answer["Retry-After"]) >= 1
    assert json.loads(answer.body)["error"]["type"] == "rate_limit_error"


async def test_a_model_set_to_nothing_or_without_hope_is_503_at_once(gateway):
    gateway.model("m", max_replicas=0)
    assert (await gateway.ask(post())).status == 503
    gateway.model("m", unavailable="nothing fits: it wants 80 GiB", expected_ready_s=42.0)
    answer = await gateway.ask(post())
    assert answer.status == 503
    assert "nothing fits" in json.loads(answer.body)["error"]
    assert 40 <= int(answer["Retry-After"]) <= 42
    assert gateway.meter().refused == {"no_replicas": 1, "unavailable": 1}


async def test_hope_that_ends_ends_the_wait(gateway, kit):
    gateway.model("m")
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: gateway.meter().queue.value == 1)
    gateway.model("m", unavailable="it crashes")
    assert (await client.response()).status == 503


async def test_waiting_longer_than_the_requests_own_timeout_is_504(gateway):
    gateway.model("m", timeout_s=0.2, queue_max_s=30.0)
    assert (await gateway.ask(post())).status == 504


async def test_a_draining_endpoint_finishes_what_it_has_and_says_so(gateway, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        await goes_on.wait()
        writer.write(OK)

    old, new = await replica(answer), await replica()
    gateway.model("m", gateway.endpoint(old, id="old"))
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: old.seen)
    gateway.model("m", gateway.endpoint(old, id="old", draining=True), gateway.endpoint(new, id="new", slot=1))
    reports = gateway.reports
    assert reports >= 1
    assert (await gateway.ask(post())).status == 200
    assert len(new.seen) == 1
    goes_on.set()
    assert (await client.response()).body == b"ok"
    await kit.until(lambda: gateway.reports > reports)
    counters = gateway.dispatcher.report(0.0, full=True).models[0].endpoints
    assert {e.id: e.in_flight for e in counters} == {"old": 0, "new": 0}


async def test_a_removed_endpoint_lingers_until_its_last_answer(gateway, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        await goes_on.wait()
        writer.write(OK)

    old = await replica(answer)
    gateway.model("m", old)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: old.seen)
    gateway.model("m")
    assert list(gateway.dispatcher.endpoints()) == ["m-0"]
    goes_on.set()
    assert (await client.response()).body == b"ok"
    await kit.until(lambda: not gateway.dispatcher.endpoints())


async def test_a_drained_front_answers_what_is_in_flight_and_ends_connections(gateway, replica, kit):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        await goes_on.wait()
        writer.write(OK)

    one = await replica(answer)
    gateway.model("m", one)
    busy, idle = await gateway.client(), await gateway.client()
    busy.send(post())
    await kit.until(lambda: one.seen and gateway.front.clients == 2)
    drained = asyncio.create_task(gateway.front.drain(10))
    await kit.until(lambda: gateway.proxy.closing)
    idle.send(post())
    await kit.until(lambda: len(one.seen) == 2)
    goes_on.set()
    assert (await busy.response()).body == b"ok"
    late = await idle.response()
    assert (late.status, late["Connection"]) == (200, "close")
    assert await drained
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", gateway.front.port)


@pytest.mark.parametrize("requests", [300])
async def test_gauges_return_to_zero_after_many_leave_at_random(gateway, replica, kit, requests):
    import random

    rng = random.Random(1)

    async def answer(seen, writer, reader):
        await asyncio.sleep(0.01 * rng.random())
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await asyncio.sleep(0.01 * rng.random())
        writer.write(b"0\r\n\r\n")

    one = await replica(answer)
    gateway.model("m", gateway.endpoint(one, concurrency=4))

    async def visit() -> None:
        client = await gateway.client()
        request = post(body=b"x" * rng.choice((2, 200_000)))
        client.send(request[: rng.choice((5, len(request) - 1, len(request), len(request)))])
        await asyncio.sleep(0.03 * rng.random())
        if rng.random() < 0.7:
            client.leave()
        else:
            await client.close()

    for _ in range(requests // 20):
        await asyncio.gather(*(visit() for _ in range(20)))
    await kit.until(lambda: gateway.quiet and gateway.front.clients == 0)
    meter = gateway.meter()
    assert meter.arrivals == sum(meter.codes.values())
    assert (await gateway.ask(post())).status == 200
