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
