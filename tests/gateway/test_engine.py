"""The dispatcher on a real loop: timers that fall due at once, or fire early."""

from __future__ import annotations

import asyncio
import random
from time import monotonic

from gateway import wire
from gateway.dispatch import Dispatcher
from gateway.engine import Engine
from gateway.limits import Limits
from gateway.meter import Meter
from gateway.pools import Pools


async def test_a_crowd_in_a_queue_is_let_go_at_its_deadline():
    dispatcher = Dispatcher(Limits(), Meter(0, "e", monotonic()), random.Random(0))
    wakes: list[str] = []
    engine = Engine(dispatcher, Pools(), wake=wakes.append, report=lambda: None)
    model = wire.ModelEntry(name="m", queue_max_s=0.2, queue_max_requests=500)
    dispatcher.apply(wire.Update(term=1, number=1, model=model), monotonic())
    served = dispatcher.find("m")
    assert served is not None

    async def ask() -> int:
        place = await engine.admit(served, nbytes=0, gives_up=monotonic() + 60, entered=None, wakes=True)
        return place.status  # type: ignore[union-attr]

    async with asyncio.timeout(5):
        assert set(await asyncio.gather(*(ask() for _ in range(800)))) == {503}
    assert wakes == ["m"]
    assert served.meter.idle
    engine.close()
