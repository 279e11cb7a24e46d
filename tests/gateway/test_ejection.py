"""One replica hung, failing, slow or refusing, among equals, through real sockets: who is harmed, and the way back."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from gateway.wire import Health

INFER = "/v2/models/m/infer"
QUICK = Health(ejection_s=0.3, probe_timeout_s=0.5)


def post(body: bytes = b"{}", target: str = INFER) -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Sick:
    """Answers well, or not, as `how` says; its readiness always answers well unless it hangs."""

    def __init__(self, kit) -> None:
        self.how = "well"
        self.kit = kit

    async def __call__(self, seen, writer, reader):
        if self.how == "hung":
            await reader.read()
            return "close"
        if seen.target == "/v2/health/ready":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return None
        if self.how == "500":
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            return None
        if self.how == "slow":
            await asyncio.sleep(0.3)
        await self.kit.echo(seen, writer, reader)
        return None


async def load(gateway, requests: int, clients: int = 4) -> Counter[int]:
    """So many requests from clients that keep their connections; statuses."""
    statuses: Counter[int] = Counter()
    left = iter(range(requests))

    async def one() -> None:
        client = await gateway.client()
        for _ in left:
            statuses[(await client.ask(post())).status] += 1

    await asyncio.gather(*(one() for _ in range(clients)))
    return statuses


def ejected(gateway) -> list[str]:
    return [e.id for e in gateway.dispatcher.find("m").route.usable if e.vitals.ejected]


def reported(gateway) -> dict[str, str]:
    """What the controller is told of each endpoint."""
    report = gateway.dispatcher.report(asyncio.get_running_loop().time(), full=True)
    return {e.id: e.ejected for model in report.models for e in model.endpoints}


def inferred(one) -> int:
    return sum(s.target == INFER for s in one.seen)


@pytest.fixture
async def three(gateway, replica, kit):
    """Three equals, of which the first can fall ill."""
    sick = Sick(kit)
    made = [await replica(sick), await replica(Sick(kit)), await replica(Sick(kit))]
    gateway.model("m", *made, health=QUICK, timeout_s=30.0)
    return sick, made


async def test_one_that_answers_500_is_ejected_and_recovers(gateway, three, kit):
    sick, (first, *_) = three
    sick.how = "500"
    statuses = await load(gateway, 300)
    assert statuses[500] == inferred(first)
    assert statuses[500] <= 5 + 4, "what was in flight when the circuit tripped, and no more"
    assert ejected(gateway) == ["m-0"]
    assert reported(gateway) == {"m-0": "errors", "m-1": "", "m-2": ""}
    sick.how = "well"
    await kit.until(lambda: not ejected(gateway), "a probe brings it back")
    assert set(reported(gateway).values()) == {""}
    before = inferred(first)
    assert await load(gateway, 200) == {200: 200}
    assert inferred(first) > before


async def test_one_that_still_fails_on_trial_harms_one_request_a_time(gateway, three, kit):
    sick, (first, *_) = three
    sick.how = "500"
    await load(gateway, 100)
    harmed = inferred(first)
    await kit.until(lambda: not ejected(gateway), "its readiness answers, so it is tried")
    statuses = await load(gateway, 100)
    assert statuses[500] == inferred(first) - harmed == 1
    assert ejected(gateway) == ["m-0"]


async def test_one_that_hangs_is_ejected_before_its_requests_time_out(gateway, three, kit):
    sick, (first, *_) = three
    assert await load(gateway, 60) == {200: 60}
    sick.how = "hung"
    stuck = []
    while not any(e.vitals.awaited for e in gateway.dispatcher.find("m").route.usable if e.id == "m-0"):
        client = await gateway.client()
        client.send(post())
        stuck.append(client)
        await asyncio.sleep(0)
        await kit.until(lambda: gateway.meter().flight.value <= 1)
    before = inferred(first)

    async def pressed() -> None:
        while not ejected(gateway):
            assert (await gateway.ask(post())).status == 200
            await asyncio.sleep(0.02)

    # Others avoid it at once, since it is the one with most in flight; ejection takes it out of the draw.
    async with asyncio.timeout(8):
        await pressed()
    assert inferred(first) - before <= 1
    assert await load(gateway, 50, clients=1) == {200: 50}
    assert ejected(gateway) == ["m-0"], "its readiness does not answer either"
    sick.how = "well"
    await kit.until(lambda: not ejected(gateway))
    for client in stuck:
        client.leave()


async def test_one_that_is_slow_is_ejected(gateway, three, kit):
    sick, (first, *_) = three
    sick.how = "slow"
    async with asyncio.timeout(8):
        while not ejected(gateway):
            assert set(await load(gateway, 50, clients=8)) == {200}
    assert inferred(first) <= 40
    sick.how = "well"
    await kit.until(lambda: not ejected(gateway))


async def test_one_that_refuses_costs_no_request_and_comes_back(gateway, replica, kit):
    made = [await replica(Sick(kit)) for _ in range(3)]
    gateway.model("m", *made, health=Health(consecutive_errors=1))
    await made[0].stop()
    assert await load(gateway, 100) == {200: 100}
    assert ejected(gateway) == ["m-0"]
    await made[0].start(made[0].port)
    await kit.until(lambda: not ejected(gateway))
    before = inferred(made[0])
    assert await load(gateway, 100) == {200: 100}
    assert inferred(made[0]) > before


async def test_equals_get_equal_shares(gateway, replica, kit):
    made = [await replica(Sick(kit)) for _ in range(4)]
    gateway.model("m", *made)
    assert await load(gateway, 2000, clients=8) == {200: 2000}
    shares = [inferred(one) / 2000 for one in made]
    assert all(abs(share - 0.25) <= 0.025 for share in shares), shares


async def test_the_only_replica_is_never_ejected(gateway, replica, kit):
    sick = Sick(kit)
    sick.how = "500"
    gateway.model("m", await replica(sick), health=QUICK)
    assert await load(gateway, 30) == {500: 30}
    sick.how = "well"
    assert await load(gateway, 30) == {200: 30}
