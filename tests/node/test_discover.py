from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tangram.node.discover import Discovery, discover

MIB = 1024 * 1024
GIB = 1024 * MIB


class NVMLError(Exception):
    pass


class NotSupported(NVMLError):
    def __str__(self) -> str:
        return "Not Supported"


class FunctionNotFound(NVMLError):
    pass


class FakeNvml:
    """As much of the module pynvml as discovery uses; one dict of facts a GPU."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NotSupported
    NVMLError_FunctionNotFound = FunctionNotFound
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlMemory_v2 = 0x02000028  # noqa: N815

    def __init__(self, *gpus: dict[str, Any], init: Exception | None = None, shutdown: Exception | None = None) -> None:
        self._gpus = gpus
        self._init = init
        self._shutdown = shutdown
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self._init:
            raise self._init
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1
        if self._shutdown:
            raise self._shutdown

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.86.15"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        gpu = self._gpus[index]
        if "lost" in gpu:
            raise gpu["lost"]
        return gpu

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:  # noqa: N802
        return str(handle["uuid"])

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:  # noqa: N802
        return str(handle["name"])

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any], version: int | None = None) -> SimpleNamespace:  # noqa: N802
        if version is None:
            return SimpleNamespace(total=handle["total"], free=0, used=0)
        if "reserved" not in handle:
            raise FunctionNotFound
        return SimpleNamespace(total=handle["total"], reserved=handle["reserved"], free=0, used=0)

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> tuple[int, int]:  # noqa: N802
        if "mig" not in handle:
            raise NotSupported
        return (handle["mig"], 1)


def gpu(number: int = 0, **facts: Any) -> dict[str, Any]:
    return {"uuid": f"GPU-{number}", "name": "NVIDIA H200", "total": 140 * GIB, "reserved": 600 * MIB} | facts


def test_a_gpu_is_a_device_with_its_own_reserve() -> None:
    nvml = FakeNvml(gpu(0, total=140 * GIB + 5, reserved=600 * MIB + 1, mig=0))
    (device,) = discover("node-a", nvml).devices
    assert (device.id, device.node, device.model) == ("GPU-0", "node-a", "NVIDIA H200")
    # Memory is rounded down, what the driver keeps up.
    assert (device.memory_mib, device.reserve_mib, device.usable_mib) == (140 * 1024, 601, 140 * 1024 - 601)
    assert device.mechanisms == {"timeslice"}
    assert device.labels == {
        "tangram.dev/index": "0",
        "tangram.dev/driver": "570.86.15",
        "tangram.dev/compute-capability": "9.0",
        "tangram.dev/mig": "disabled",
    }
    assert nvml.open == 0


def test_a_gpu_cut_by_mig_offers_no_slices_as_a_whole() -> None:
    cut, whole, old = discover("n", FakeNvml(gpu(0, mig=1), gpu(1, mig=0), gpu(2))).devices
    assert (cut.mechanisms, cut.labels["tangram.dev/mig"]) == (frozenset(), "enabled")
    assert (whole.mechanisms, whole.labels["tangram.dev/mig"]) == ({"timeslice"}, "disabled")
    assert (old.mechanisms, old.labels["tangram.dev/mig"]) == ({"timeslice"}, "disabled")


def test_an_old_driver_does_not_tell_what_it_keeps() -> None:
    facts = gpu(total=16 * GIB)
    del facts["reserved"]
    (device,) = discover("n", FakeNvml(facts)).devices
    assert (device.memory_mib, device.reserve_mib) == (16 * 1024, 0)


def test_a_gpu_that_is_lost_leaves_the_others() -> None:
    nvml = FakeNvml(gpu(0), gpu(1, lost=NVMLError("GPU is lost")), gpu(2))
    found = discover("n", nvml)
    assert [d.id for d in found.devices] == ["GPU-0", "GPU-2"]
    assert found.reasons == ("GPU 1 is left out: GPU is lost",)
    assert nvml.open == 0


def test_without_a_driver_there_is_a_reason() -> None:
    found = discover("n", FakeNvml(init=NVMLError("Driver Not Loaded")))
    assert found == Discovery((), ("NVML cannot be used: Driver Not Loaded",))


def test_a_failing_shutdown_loses_nothing() -> None:
    assert len(discover("n", FakeNvml(gpu(), shutdown=NVMLError("Uninitialized"))).devices) == 1


def test_without_the_binding_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (reason,) = discover("n").reasons
    assert "install tangram-serving[nvidia]" in reason


@pytest.mark.gpu
def test_the_gpus_of_this_machine() -> None:
    found = discover("n")
    assert found.devices and found.reasons == ()
    assert all(d.id.startswith("GPU-") and 0 < d.usable_mib < d.memory_mib for d in found.devices)
