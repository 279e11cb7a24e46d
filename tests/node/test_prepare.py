"""Devices that give slices one after the other, and what runs beside them while they are used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from packer.inventory import Device, MigInstance
from tangram.node.backend import StartError
from tangram.node.local import LocalBackend
from tangram.node.mechanisms import GivenSlice, Mechanisms, SliceSettings
from tangram.node.mechanisms.mps import MpsError

ONE, TWO = (Device(f"GPU-{i}", "n", "NVIDIA H100-80", 81_559, mechanisms=frozenset({"mig", "mps"})) for i in (1, 2))
FIRST, SECOND = MigInstance(0, "1g.10gb"), MigInstance(1, "1g.10gb")


class Slow(Mechanisms):
    """Gives a slice when it is let; knows who was there at a time."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.let = threading.Event()
        self.there: set[str] = set()
        self.most = 0
        self.layouts: list[Mapping[str, Any]] = []
        self.running = {"GPU-1", "GPU-2"}
        self.stuck = ""

    def prepare(self, given: GivenSlice, layouts: Mapping[str, Any]) -> SliceSettings:
        ids = {d.id for d in given.devices}
        assert not ids & self.there, "two at a time on one device"
        self.there |= ids
        self.most = max(self.most, len(self.there))
        self.layouts.append(layouts)
        assert self.let.wait(10)
        self.there -= ids
        return SliceSettings({"ON": ",".join(sorted(ids))})

    def daemons(self) -> list[str]:
        return sorted(self.running)

    def end_daemon(self, device: str) -> None:
        if device == self.stuck:
            raise MpsError("busy")
        self.running.discard(device)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


def backend_of(slow: Slow, folder: Path) -> LocalBackend:
    return LocalBackend(folder, lambda _: None, mechanisms=slow)


def given(*devices: Device, mechanism: str = "mig") -> GivenSlice:
    return GivenSlice(mechanism, devices, 10, 1024, 1024, (FIRST,) * len(devices))


async def test_one_start_at_a_time_on_a_device_and_each_sees_who_is_on_record_by_then(
    slow: Slow, tmp_path: Path, until: Any
) -> None:
    backend = backend_of(slow, tmp_path)
    record = {"GPU-1": {FIRST}, "GPU-2": set[MigInstance]()}
    starts = [asyncio.create_task(backend.prepare(given(d), record.__getitem__)) for d in (ONE, ONE, TWO)]
    await until(lambda: slow.most == 2)
    # What is recorded while the first is under way is seen by the second.
    record["GPU-1"] = {FIRST, SECOND}
    slow.let.set()
    found = await asyncio.gather(*starts)
    assert [s.env["ON"] for s in found] == ["GPU-1", "GPU-1", "GPU-2"]
    assert slow.most == 2, "devices do not wait for each other"
    assert [la["GPU-1"] for la in slow.layouts if "GPU-1" in la] == [{FIRST}, {FIRST, SECOND}]


async def test_daemons_end_where_nobody_is_by_mps(slow: Slow, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = backend_of(slow, tmp_path)
    await backend.tidy(lambda: {"GPU-2"})
    assert slow.running == {"GPU-2"}
    slow.stuck = "GPU-2"
    await backend.tidy(set)
    assert slow.running == {"GPU-2"}
    assert "the MPS daemon of GPU-2 does not end: busy" in caplog.text


async def test_a_daemon_that_a_start_has_come_for_meanwhile_stays(slow: Slow, tmp_path: Path, until: Any) -> None:
    backend = backend_of(slow, tmp_path)
    used: set[str] = set()
    start = asyncio.create_task(backend.prepare(given(ONE, mechanism="mps"), lambda _: set()))
    await until(lambda: slow.there)
    tidying = asyncio.create_task(backend.tidy(lambda: used))
    used.add("GPU-1")
    slow.let.set()
    await asyncio.gather(start, tidying)
    assert slow.running == {"GPU-1"}


async def test_what_a_device_refuses_is_a_start_that_fails(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, lambda _: None, mechanisms=Mechanisms(tmp_path, control="/no/control"))
    with pytest.raises(StartError, match="is not installed; it comes with the NVIDIA driver"):
        await backend.prepare(given(ONE, mechanism="mps"), lambda _: set())
    with pytest.raises(StartError, match=r"slice\.mechanism 'dra'"):
        backend.settings(given(ONE, mechanism="dra"))
