"""A model that fits nowhere is let in by a move, under load, without a lost request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

LARGE = "minReplicas: 1, maxReplicas: 1"


async def test_a_model_that_fits_nowhere_is_let_in_by_a_move_under_load(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    assert len({r["device"] for r in before}) == 2, "one on each device, so that neither has room for the large one"
    large = installation.folder / "large.yaml"
    large.write_text(installation.document("large", scaling=LARGE).replace("100Mi, limit: 200Mi", "1000Mi"))
    async with make_load(delay_ms=20).running() as load:
        await load.flow()
        applied = await asyncio.to_thread(installation.run, "apply", "-f", str(large))
        assert applied.returncode == 0, applied.stderr
        await asyncio.to_thread(installation.wait_ready, 1, "large", 60.0)
        await load.flow()
    assert load.failures == []
    after = installation.wait_ready(2)
    assert len({r["device"] for r in after}) == 1
    moved = [a for d in installation.items("/decisions?model=who") for a in d["actions"] if "so that large fits" in a]
    assert len(moved) == 1
    waited = [d["waiting"] for d in installation.items("/decisions?model=large") if d["waiting"]]
    assert any("room is being made: who-" in text for text in waited), waited
