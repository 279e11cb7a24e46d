from __future__ import annotations

import logging

import pytest

from . import fuzz


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_streams_and_answers(seed, caplog):
    caplog.set_level(logging.CRITICAL, "gateway")
    made, wrong = await fuzz.fuzz(seed, count=300)
    assert made == 300
    assert not wrong, "\n".join(wrong[:5])


async def test_nothing_is_taken_after_an_answer_that_ends_its_connection(caplog):
    """What was taken too late once showed in the next round."""
    caplog.set_level(logging.CRITICAL, "gateway")
    head = b"POST /models/m/x HTTP/1.1\r\nHost: gw\r\n"
    data = head + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n"
    data += b"HEAD /models/m/x HTTP/1.1\r\nHost: gw\r\n\r\n"
    data += head + b"Content-Length: 300000\r\n\r\n" + bytes(300_000)
    rig = fuzz.Rig()
    await rig.start()
    try:
        seen = [await rig.observe(fuzz.Stream(data)) for _ in range(4)]
        assert all(len(one.forwarded) == 1 for one in seen)
    finally:
        await rig.stop()
