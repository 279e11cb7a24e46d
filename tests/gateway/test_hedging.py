"""A slow request that is also sent to a second replica: when, how often, and what becomes of the one that loses."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from gateway.health import ENOUGH_SAMPLES as ENOUGH_TO_JUDGE
from gateway.health import Health, OutlierDetector, Vitals
from gateway.hedging import ENOUGH_SAMPLES, Hedging
from gateway.wire import Hedge

INFER = "/v2/models/m/infer"
SOON = Hedge(after_s=0.03, max_percent=100)


def post(target: str = INFER, body: bytes = b"{}", **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def hang(seen, writer, reader):
    await reader.read()


def after(gate: asyncio.Event, response: bytes):
    async def answer(seen, writer, reader):
        await gate.wait()
        writer.write(response)

    return answer


def once_seen(other, kit, then=None):
    """Answers a request when the other replica has it too."""
    count = 0

    async def answer(seen, writer, reader):
        nonlocal count
        count += 1
        await kit.until(lambda: len(other.seen) >= count)
        return await (then or kit.echo)(seen, writer, reader)

    return answer


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow"
BAD = b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"


def pair(gateway, first, second, **fields) -> None:
    """Two replicas, of which the first gets every request first."""
    heavy = gateway.endpoint(first, id="m-0", weight=100)
    light = gateway.endpoint(second, id="m-1", slot=1)
    gateway.model("m", heavy, light, **({"hedge": SOON} | fields))


# --- when and how often ---


def test_a_share_of_the_requests_may_be_sent_twice_and_no_more():
    policy, hedging = Hedge(max_percent=10), Hedging()
    spent = 0
    for n in range(10_000):
        hedging.came(policy, n * 0.01)
        if hedging.affordable:
            hedging.spend()
            spent += 1
    assert spent == 1000


def test_what_is_saved_up_is_that_of_the_last_seconds():
    policy, hedging = Hedge(max_percent=10), Hedging()
    for n in range(100_000):
        hedging.came(policy, n * 0.01)
    spent = 0
    while hedging.affordable:
        hedging.spend()
        spent += 1
    assert 90 <= spent <= 110, "a tenth of ten seconds of 100 a second"
    for n in range(1000):
        hedging.came(policy, 1000 + n * 0.01)
    hedging.came(policy, 10_000)
    hedging.spend()
    assert not hedging.affordable, "and of an hour ago one is left"


def test_the_percentile_is_of_recent_times_once_enough_are_known():
    policy, hedging = Hedge(percentile=90), Hedging()
    for n in range(ENOUGH_SAMPLES - 1):
        hedging.answered(0.1)
        assert hedging.delay_s(policy) is None, n
    for n in range(1000):
        hedging.answered((n % 100) / 100)
    assert hedging.delay_s(policy) == pytest.approx(0.9, abs=0.05)
    for _ in range(1000):
        hedging.answered(5.0)
    assert hedging.delay_s(policy) == 5.0
    assert hedging.delay_s(Hedge(after_s=0.2)) == 0.2


class One:
    def __init__(self) -> None:
        self.vitals = Vitals()


def test_one_that_is_overtaken_now_and_then_stays():
    mates = [One(), One()]
    detector = OutlierDetector(Health())
    now = 0.0
    for n in range(400):
        for mate in mates:
            mate.vitals.sent(now)
        now += 0.1
        mates[1].vitals.answering(0.02, now)
        if n % 2:
            mates[0].vitals.overtaken(0.1, now)
        else:
            mates[0].vitals.answering(0.02, now)
        now += 60
        detector.review(mates, now)
    assert mates[0].vitals.ejected is None


def test_one_that_says_nothing_is_silent_though_nobody_waits_for_it_long():
    mates = [One(), One()]
    detector = OutlierDetector(Health())
    now = 0.0
    for _ in range(ENOUGH_TO_JUDGE):
        mates[1].vitals.sent(now)
        now += 0.06
        mates[1].vitals.answering(0.06, now)
    while mates[0].vitals.ejected is None:
        mates[0].vitals.sent(now)
        now += 0.1
        detector.review(mates, now)
        mates[0].vitals.overtaken(0.1, now)
        now += 1.0
        assert now < 60
    assert mates[0].vitals.ejected == "silent"


# --- through sockets ---


async def test_the_fast_answer_wins_and_the_slow_one_is_cancelled(gateway, replica, kit):
    slow = await replica(hang)
    fast = await replica(once_seen(slow, kit))
    pair(gateway, slow, fast)
    for n in range(1, 6):
        answer = await gateway.ask(post(body=b"tensor"))
        assert (answer.status, answer.body) == (200, b"tensor")
        await kit.until(lambda n=n: slow.ended == n, "the slow one sees that nobody waits")
    assert [s.body for s in slow.seen] == [s.body for s in fast.seen] == [b"tensor"] * 5
    await kit.until(lambda: gateway.quiet)
    meter = gateway.meter()
    assert (meter.arrivals, meter.codes, meter.hedges, meter.hedges_won) == (5, {200: 5}, 5, 5)
    assert (meter.completions, meter.errors, meter.retries) == (5, 0, 0)
    assert meter.endpoints["m-0"].failures == 0
    first = next(e for e in gateway.dispatcher.find("m").route.usable if e.id == "m-0")
    assert (first.vitals.errors, first.vitals.awaited, first.vitals.ejected, first.suspended_until) == (0, 0, None, 0.0)


async def test_the_slow_answer_wins_if_it_comes_first(gateway, replica, kit):
    gate = asyncio.Event()
    slow, slower = await replica(after(gate, OK)), await replica(hang)
    pair(gateway, slow, slower)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: slower.seen)
    gate.set()
    assert (await client.response()).body == b"slow"
    await kit.until(lambda: slower.ended == 1 and gateway.quiet)
    assert (gateway.meter().hedges, gateway.meter().hedges_won) == (1, 0)
    assert gateway.meter().endpoints["m-1"].failures == 0


@pytest.mark.parametrize("fields", [{}, {"retry_attempts": 0}, {"retry_all_methods": True}])
async def test_a_model_that_does_not_say_so_is_not_hedged(gateway, replica, kit, fields):
    gate = asyncio.Event()
    slow, fast = await replica(after(gate, OK)), await replica()
    pair(gateway, slow, fast, hedge=None, **fields)
    asked = asyncio.create_task(gateway.ask(post()))
    await kit.until(lambda: slow.seen)
    await asyncio.sleep(0.1)
    gate.set()
    assert (await asked).body == b"slow"
    assert not fast.seen


@pytest.mark.parametrize(
    "request_",
    [
        post("/v1/chat/completions", b'{"model":"m"}'),
        post("/models/m/x"),
        post(body=b"x" * 300_000),
        post(X_Session="a"),
    ],
    ids=["chat", "any path", "a body too large to keep", "a session"],
)
async def test_what_may_not_be_sent_twice_is_not(gateway, replica, kit, request_):
    gate = asyncio.Event()
    slow, other = await replica(after(gate, OK)), await replica(after(gate, OK))
    pair(gateway, slow, other, sticky_header="X-Session")
    asked = asyncio.create_task(gateway.ask(request_))
    await kit.until(lambda: slow.seen or other.seen)
    await asyncio.sleep(0.15)
    gate.set()
    assert (await asked).status == 200
    assert len(slow.seen) + len(other.seen) == 1
    assert gateway.meter().hedges == 0


async def test_the_spec_may_allow_what_is_not_safe(gateway, replica, kit):
    slow = await replica(hang)
    fast = await replica(once_seen(slow, kit))
    pair(gateway, slow, fast, retry_all_methods=True, retry_attempts=0)
    assert (await gateway.ask(post("/v1/chat/completions", b'{"model":"m"}'))).status == 200
    assert len(slow.seen) == len(fast.seen) == 1


async def test_a_body_that_is_still_coming_is_not_sent_to_two(gateway, replica, kit):
    slow, fast = await replica(hang, read_body=False), await replica()
    pair(gateway, slow, fast, timeout_s=0.4)
    client = await gateway.client()
    client.send(post(body=b"x" * 100)[:-50])
    await kit.until(lambda: slow.seen)
    assert (await client.response()).status == 408
    assert not fast.seen


async def test_the_budget_holds(gateway, replica, kit):
    async def late(seen, writer, reader):
        await asyncio.sleep(0.02)
        writer.write(OK)

    slow, fast = await replica(late), await replica()
    pair(gateway, slow, fast, hedge=Hedge(after_s=0.001, max_percent=10))
    client = await gateway.client()
    for _ in range(60):
        assert (await client.ask(post())).status == 200
    assert len(fast.seen) <= gateway.meter().hedges
    assert 1 <= gateway.meter().hedges <= 6


async def test_only_a_place_that_is_free_is_taken(gateway, replica, kit):
    gate = asyncio.Event()
    first, second = await replica(after(gate, OK)), await replica(after(gate, OK))
    gateway.model(
        "m",
        gateway.endpoint(first, id="m-0", weight=100, concurrency=1),
        gateway.endpoint(second, id="m-1", slot=1, concurrency=1),
        hedge=SOON,
    )
    clients = [await gateway.client() for _ in range(3)]
    for client in clients:
        client.send(post())
    await kit.until(lambda: gateway.meter().queue.value == 1)
    await asyncio.sleep(0.1)
    assert gateway.meter().hedges == 0
    assert gateway.meter().flight.value == 2
    gate.set()
    for client in clients:
        assert (await client.response()).status == 200
    await kit.until(lambda: gateway.quiet)


async def test_a_client_that_leaves_a_race_cancels_both(gateway, replica, kit):
    first, second = await replica(hang), await replica(hang)
    pair(gateway, first, second)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: first.seen and second.seen)
    assert gateway.meter().flight.value == 2
    client.leave()
    await kit.until(lambda: first.ended == second.ended == 1, "both are cancelled")
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().codes == {499: 1}
    assert all(e.failures == 0 for e in gateway.meter().endpoints.values())
    assert all(e.in_flight == 0 for e in gateway.dispatcher.endpoints().values())


async def test_both_fail_is_one_error_and_no_third_sending(gateway, replica, kit):
    async def later(seen, writer, reader):
        await kit.until(lambda: second.seen)
        return "reset"

    first, second = await replica(later), await replica(kit.fixed(b"", "reset"))
    pair(gateway, first, second)
    answer = await gateway.ask(post())
    assert answer.status == 502
    assert len(first.seen) == len(second.seen) == 1, "the rival was the one repeat that is allowed"
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().codes == {502: 1}


async def test_a_failure_of_one_lets_the_other_win(gateway, replica, kit):
    gate = asyncio.Event()
    slow, broken = await replica(after(gate, OK)), await replica(kit.fixed(b"", "reset"))
    pair(gateway, slow, broken)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: broken.seen)
    await kit.until(lambda: gateway.meter().flight.value == 1, "the broken one is given back at once")
    gate.set()
    assert (await client.response()).body == b"slow"
    assert gateway.meter().endpoints["m-1"].failures == 1


async def test_a_5xx_of_one_lets_the_other_win(gateway, replica, kit):
    gate = asyncio.Event()
    slow, bad = await replica(after(gate, OK)), await replica(kit.fixed(BAD))
    pair(gateway, slow, bad)
    client = await gateway.client()
    client.send(post())
    bad_vitals = next(e.vitals for e in gateway.dispatcher.find("m").route.usable if e.id == "m-1")
    await kit.until(lambda: bad_vitals.begun, "its head is here, and held back")
    gate.set()
    answer = await client.response()
    assert (answer.status, answer.body) == (200, b"slow")
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().endpoints["m-1"].failures == 1, "an error is an error, though nobody saw it"
    assert (gateway.meter().errors, bad_vitals.errors, bad_vitals.begun) == (0, 1, 0)


async def test_a_5xx_is_passed_on_where_the_other_gives_nothing(gateway, replica, kit):
    silent, bad = await replica(hang), await replica(kit.fixed(BAD))
    pair(gateway, silent, bad, timeout_s=1.5)
    answer = await gateway.ask(post())
    assert (answer.status, answer.body) == (500, b"no")
    await kit.until(lambda: silent.open == 0 and gateway.quiet)
    assert gateway.meter().codes == {500: 1}


async def test_two_5xx_are_one(gateway, replica, kit):
    gate = asyncio.Event()
    first, second = await replica(after(gate, BAD)), await replica(after(gate, BAD))
    pair(gateway, first, second)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: second.seen)
    gate.set()
    answer = await client.response()
    assert (answer.status, answer.body) == (500, b"no")
    await kit.until(lambda: gateway.quiet)
    assert [e.failures for e in gateway.meter().endpoints.values()] == [1, 1]
    assert gateway.meter().codes == {500: 1}


async def test_a_rival_that_cannot_be_reached_harms_nothing(gateway, replica, kit):
    gate = asyncio.Event()
    slow, dead = await replica(after(gate, OK)), await replica()
    await dead.stop()
    pair(gateway, slow, dead)
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: gateway.meter().hedges == 1 and gateway.meter().flight.value == 1)
    gate.set()
    assert (await client.response()).body == b"slow"


async def test_the_deadline_holds_for_both(gateway, replica, kit):
    first, second = await replica(hang), await replica(hang)
    pair(gateway, first, second, timeout_s=1.5)
    assert (await gateway.ask(post())).status == 504
    await kit.until(lambda: first.ended == second.ended == 1 and gateway.quiet)
    assert (await gateway.ask(post(X_Request_Timeout="1200ms"))).status == 504
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().codes == {504: 2}
    assert len(first.seen) == len(second.seen) == 2


async def test_one_that_lets_nobody_connect_is_ejected_though_it_is_always_overtaken(gateway, replica, kit):
    deaf, fast = await replica(), await replica()
    pair(gateway, deaf, fast, hedge=Hedge(after_s=0.1, max_percent=100))

    async def never() -> None:
        await asyncio.Event().wait()

    # A host that drops every packet, which cannot be had on one machine.
    gateway.pools.get("m-0", "127.0.0.1", deaf.port).connect = never
    first = gateway.dispatcher.find("m").route.endpoints["m-0"]
    for _ in range(60):
        assert (await gateway.ask(post())).status == 200
        if first.vitals.ejected:
            break
    assert first.vitals.ejected in ("slow", "silent")
    await kit.until(lambda: gateway.quiet)


async def test_streams_and_large_answers_come_whole(gateway, replica, kit):
    going = asyncio.Event()

    async def stream(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await going.wait()
        for _ in range(64):
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    slow = await replica(hang)
    fast = await replica(once_seen(slow, kit, stream))
    pair(gateway, slow, fast)
    client = await gateway.client()
    client.send(post())
    await client.reader.readuntil(b"first")
    await kit.until(lambda: slow.ended == 1, "the loser is gone with the first byte")
    assert gateway.meter().flight.value == 1
    going.set()
    rest = await _until(client.reader, b"last\r\n0\r\n\r\n")
    assert rest.count(b"x") == 64 * 65536
    await kit.until(lambda: gateway.quiet)


async def _until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    found = b""
    async with asyncio.timeout(10):
        while not found.endswith(end):
            found += await reader.read(2**20)
    return found


async def test_a_rival_is_of_the_same_side_of_a_canary(gateway, replica, kit):
    gate = asyncio.Event()
    stable, canary = await replica(after(gate, OK)), await replica()
    gateway.model(
        "m",
        gateway.endpoint(stable, id="m-0"),
        gateway.endpoint(canary, id="m-1", slot=1, canary=True),
        canary_percent=0,
        hedge=SOON,
    )
    asked = asyncio.create_task(gateway.ask(post()))
    await kit.until(lambda: stable.seen)
    await asyncio.sleep(0.1)
    gate.set()
    assert (await asked).body == b"slow"
    assert not canary.seen


async def test_slower_than_usual_is_hedged_without_a_number(gateway, replica, kit):
    stuck = False

    async def answer(seen, writer, reader):
        if stuck:
            await reader.read()
        else:
            await kit.echo(seen, writer, reader)

    first, second = await replica(answer), await replica()
    pair(gateway, first, second, hedge=Hedge(max_percent=100))
    client = await gateway.client()
    for _ in range(ENOUGH_SAMPLES + 20):
        await client.ask(post())
    stuck = True
    async with asyncio.timeout(5):
        assert (await client.ask(post(body=b"late"))).body == b"late"
    assert gateway.meter().hedges_won >= 1


async def test_after_a_race_the_connection_of_the_winner_is_kept(gateway, replica, kit):
    slow = await replica(hang)
    fast = await replica(once_seen(slow, kit))
    pair(gateway, slow, fast)
    for _ in range(5):
        await gateway.ask(post())
    await kit.until(lambda: slow.ended == 5)
    assert fast.connections == 1


async def test_after_a_storm_of_races_nothing_is_held(gateway, replica, kit):
    rng = random.Random(3)

    async def anyhow(seen, writer, reader):
        lot = rng.random()
        if lot < 0.2:
            await reader.read()
            return "close"
        if lot < 0.3:
            return "reset"
        if lot < 0.4:
            writer.write(BAD)
            return None
        if lot < 0.5:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            return "close"
        if lot < 0.7:
            await asyncio.sleep(0.02 * rng.random())
        await kit.echo(seen, writer, reader)
        return None

    replicas = [await replica(anyhow) for _ in range(4)]
    gateway.model(
        "m",
        *(gateway.endpoint(one, id=f"m-{n}", slot=n, concurrency=8) for n, one in enumerate(replicas)),
        hedge=Hedge(after_s=0.003, max_percent=100),
        timeout_s=0.3,
        queue_max_s=0.2,
    )

    async def one() -> None:
        client = await gateway.client()
        client.send(post(body=b"x" * rng.randrange(1, 3000)))
        if rng.random() < 0.3:
            await asyncio.sleep(0.02 * rng.random())
            client.leave()
        else:
            with contextlib.suppress(kit.Truncated):
                await client.response()
            await client.close()

    await asyncio.gather(*(one() for _ in range(300)))
    await kit.until(lambda: gateway.quiet)
    meter = gateway.meter()
    assert sum(meter.codes.values()) == meter.arrivals
    assert meter.hedges > 0
    for endpoint in gateway.dispatcher.endpoints().values():
        assert (endpoint.in_flight, endpoint.vitals.awaited, endpoint.vitals.begun) == (0, 0, 0)
    await kit.until(lambda: all(len(pool.open) == pool.idle for pool in gateway.pools._pools.values()))
