"""Connections to replicas that are kept, or opened before they are asked for."""

from __future__ import annotations

import time

import pytest

from gateway.pools import AHEAD, Pools


@pytest.fixture
async def pools():
    made = Pools()
    yield made
    made.close()


async def test_connections_are_opened_to_a_new_endpoint_and_wait_for_requests(pools, replica, kit):
    one = await replica()
    for _ in range(3):
        pools.prepare([("m-0", "127.0.0.1", one.port)])
    await kit.until(lambda: pools.counts() == {"m-0": (0, AHEAD)})
    assert one.connections == AHEAD
    pool = pools.get("m-0", "127.0.0.1", one.port)
    taken = pool.reuse(time.monotonic(), True)
    assert taken is not None
    assert pools.counts() == {"m-0": (1, AHEAD - 1)}
    taken.give_back(None, time.monotonic())
    assert pools.counts() == {"m-0": (0, AHEAD)}


async def test_an_endpoint_that_cannot_be_reached_is_left_alone(pools, replica, kit):
    one = await replica()
    await one.stop()
    pools.prepare([("m-0", "127.0.0.1", one.port)])
    await kit.until(lambda: not pools._opening)
    assert pools.counts() == {"m-0": (0, 0)}


async def test_what_the_endpoint_says_of_its_keep_alive_is_heeded(pools, replica, kit):
    one = await replica()
    pools.prepare([("m-0", "127.0.0.1", one.port)])
    await kit.until(lambda: pools.counts() == {"m-0": (0, AHEAD)})
    pool = pools.get("m-0", "127.0.0.1", one.port)
    now = time.monotonic()
    taken = pool.reuse(now, True)
    assert taken is not None
    taken.give_back(1.0, now)
    assert pool.reuse(now + 0.6, False) is None
    assert pool.reuse(now + 0.4, False) is taken


async def test_a_leaving_endpoint_keeps_no_connections(pools, replica, kit):
    one = await replica()
    pools.prepare([("m-0", "127.0.0.1", one.port)])
    await kit.until(lambda: pools.counts() == {"m-0": (0, AHEAD)})
    taken = pools.get("m-0", "127.0.0.1", one.port).reuse(time.monotonic(), True)
    assert taken is not None
    pools.retain({"m-0": True})
    await kit.until(lambda: one.open == 1)
    taken.give_back(None, time.monotonic())
    await kit.until(lambda: one.open == 0)


async def test_a_fresh_connection_is_kept_before_many_that_are_stale(pools, replica, kit):
    """Else a request that may not be repeated finds none that it may use, however many are idle, time and again."""
    one = await replica()
    pool = pools.get("m-0", "127.0.0.1", one.port)
    long_ago = time.monotonic() - 10.0
    stale = [await pool.connect() for _ in range(64)]
    for connection in stale:
        connection.give_back(None, long_ago)
    now = time.monotonic()
    assert pool.idle == 64
    assert pool.reuse(now, False) is None
    fresh = await pool.connect()
    fresh.give_back(None, now)
    assert pool.idle == 64, "the bound holds"
    assert pool.reuse(now, False) is fresh
    await kit.until(lambda: one.open == 64)
