"""XID errors, from a stand-in for NVML's events."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tangram.node.faults import APPLICATION, Faults


class NVMLError(Exception):
    pass


class Timeout(NVMLError):
    pass


class FakeNvml:
    """Events are kept for GPUs that were registered, until they are read."""

    NVMLError = NVMLError
    NVMLError_Timeout = Timeout
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.open = 0
        self.sets = 0
        self.registered: list[int] = []
        self.events: list[SimpleNamespace] = []
        self.lost: set[int] = set()
        self.broken = False

    def fault(self, gpu: int, xid: int, kind: int = 8) -> None:
        if gpu in self.registered:
            self.events.append(SimpleNamespace(device=gpu, eventType=kind, eventData=xid))

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlEventSetCreate(self) -> str:  # noqa: N802
        self.sets += 1
        return "set"

    def nvmlEventSetFree(self, _: str) -> None:  # noqa: N802
        self.sets -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:  # noqa: N802
        assert (kinds, events) == (8, "set")
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: str, timeout_ms: int) -> Any:  # noqa: N802
        assert (events, timeout_ms) == ("set", 0)
        if self.broken:
            raise NVMLError("Unknown Error")
        if not self.events:
            raise Timeout
        return self.events.pop(0)


def test_the_last_fault_of_each_gpu_since_the_last_look() -> None:
    nvml = FakeNvml()
    faults = Faults(nvml)
    assert faults.look() == {}
    nvml.fault(0, 63)
    nvml.fault(1, 79)
    nvml.fault(0, 48)
    assert faults.look() == {"GPU-0": 48, "GPU-1": 79}
    assert faults.look() == {}
    assert nvml.registered == [0, 1], "once each"
    faults.close()
    faults.close()
    assert (nvml.open, nvml.sets) == (0, 0)


@pytest.mark.parametrize("xid", sorted(APPLICATION))
def test_what_an_application_did_is_no_fault_of_the_gpu(xid: int) -> None:
    nvml = FakeNvml()
    faults = Faults(nvml)
    faults.look()
    nvml.fault(0, xid)
    nvml.fault(1, 1, kind=2)
    assert faults.look() == {}


def test_a_gpu_that_comes_later_is_registered_then() -> None:
    nvml = FakeNvml()
    nvml.lost = {1}
    faults = Faults(nvml)
    faults.look()
    assert nvml.registered == [0]
    nvml.lost = set()
    faults.look()
    nvml.fault(1, 94)
    assert faults.look() == {"GPU-1": 94}


def test_a_driver_that_goes_and_comes_is_asked_anew() -> None:
    nvml = FakeNvml()
    nvml.broken = True
    faults = Faults(nvml)
    assert faults.look() == {}
    nvml.broken = False
    faults.look()
    nvml.broken = True
    assert faults.look() == {}
    assert (nvml.open, nvml.sets) == (0, 0)
    nvml.broken = False
    faults.look()
    assert nvml.registered == [0, 1, 0, 1]


def test_without_the_binding_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Faults().look() == {}
