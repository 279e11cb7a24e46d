from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from packer.inventory import Distance, Placement, SliceRequest
from packer.place import place
from tangram.core import convert
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

    NVML_FEATURE_ENABLED = 1
    NVML_NVLINK_MAX_LINKS = 18
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2

    def nvmlDeviceGetPciInfo(self, handle: dict[str, Any]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{handle['uuid'].removeprefix('GPU-')}A:00.0\0")

    def _link(self, handle: dict[str, Any], link: int) -> object:
        ends = handle.get("nvlinks", ())
        if link >= len(ends):
            raise NotSupported
        return ends[link]

    def nvmlDeviceGetNvLinkState(self, handle: dict[str, Any], link: int) -> int:  # noqa: N802
        return int(self._link(handle, link) is not None)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: dict[str, Any], link: int) -> int:  # noqa: N802
        if handle.get("old"):
            raise FunctionNotFound
        return 2 if self._link(handle, link) == "switch" else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: dict[str, Any], link: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=f"0000:{self._link(handle, link)}a:00.0".encode())

    def nvmlDeviceGetTopologyCommonAncestor(self, one: dict[str, Any], other: dict[str, Any]) -> int:  # noqa: N802
        if one.get("old"):
            raise FunctionNotFound
        if one.get("board", 1) == other.get("board", 2):
            return 0
        return 10 if one.get("switch") == other.get("switch") else 35 if "odd" in one else 40

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
    nvml = FakeNvml(gpu(0, mig=1), gpu(1, mig=0), gpu(2), gpu(3, mig=1, name="NVIDIA X9"))
    cut, whole, old, unknown = discover("n", nvml).devices
    assert (cut.mechanisms, cut.labels["tangram.dev/mig"]) == ({"mig"}, "enabled")
    assert unknown.mechanisms == frozenset(), "nothing is known of its geometry"
    assert (whole.mechanisms, whole.labels["tangram.dev/mig"]) == ({"timeslice"}, "disabled")
    assert (old.mechanisms, old.labels["tangram.dev/mig"]) == ({"timeslice"}, "disabled")


def test_an_old_driver_does_not_tell_what_it_keeps() -> None:
    facts = gpu(total=16 * GIB)
    del facts["reserved"]
    (device,) = discover("n", FakeNvml(facts)).devices
    assert (device.memory_mib, device.reserve_mib) == (16 * 1024, 0)


def test_nvlinks_are_counted_by_the_gpu_that_they_lead_to() -> None:
    nvml = FakeNvml(
        # The second of the first GPU's links is down, the third leads to something that is no GPU of ours.
        gpu(0, nvlinks=[1, None, 9, 1]),
        gpu(1, nvlinks=[0, 0], old=True),
        gpu(2),
    )
    one, two, three = discover("n", nvml).devices
    assert (one.links, two.links, three.links) == ({"GPU-1": 2}, {"GPU-0": 2}, {})
    (alone,) = discover("n", FakeNvml(gpu(0, nvlinks=["switch"]))).devices
    assert alone.links == {}


def test_a_switch_links_all_that_lead_to_it() -> None:
    nvml = FakeNvml(gpu(0, nvlinks=["switch"] * 4), gpu(1, nvlinks=["switch"] * 4), gpu(2, nvlinks=["switch"] * 2))
    one, two, three = discover("n", nvml).devices
    assert one.links == {"GPU-1": 4, "GPU-2": 2}
    assert two.links == {"GPU-0": 4, "GPU-2": 2}
    assert three.links == {"GPU-0": 2, "GPU-1": 2}


def test_a_replica_of_two_devices_gets_the_nvlink_pair() -> None:
    nvml = FakeNvml(gpu(0), gpu(1, nvlinks=[3]), gpu(2), gpu(3, nvlinks=[1]))
    inventory = convert.inventory(None, discover("n", nvml).devices)
    wide = SliceRequest("wide-1", "wide", 1024, mechanism="timeslice", devices=2)
    (lies,) = place(inventory, [wide])
    assert isinstance(lies, Placement)
    assert set(lies.all_devices) == {"GPU-1", "GPU-3"}


def test_distances_over_pcie_are_as_nvml_has_them() -> None:
    nvml = FakeNvml(gpu(0, switch=1), gpu(1, switch=1), gpu(2, switch=2, board=7), gpu(3, switch=2, board=7))
    zero, one, two, three = discover("n", nvml).devices
    assert zero.distances == {"GPU-1": Distance.PIX, "GPU-2": Distance.NODE, "GPU-3": Distance.NODE}
    assert one.distances["GPU-0"] is Distance.PIX
    assert (two.distances["GPU-3"], three.distances["GPU-2"]) == (Distance.BOARD, Distance.BOARD)


def test_a_distance_that_is_not_told_or_not_known_is_left_out() -> None:
    zero, one, two = discover("n", FakeNvml(gpu(0, old=True), gpu(1, odd=True, switch=1), gpu(2, switch=2))).devices
    assert (zero.distances, one.distances, two.distances) == ({}, {}, {})


def test_the_numbers_of_distances_are_those_of_nvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = {
        "BOARD": "INTERNAL",
        "PIX": "SINGLE",
        "PXB": "MULTIPLE",
        "PHB": "HOSTBRIDGE",
        "NODE": "NODE",
        "SYS": "SYSTEM",
    }
    assert {d.name: int(d) for d in Distance} == {n: getattr(pynvml, f"NVML_TOPOLOGY_{t}") for n, t in names.items()}


def test_a_replica_of_two_devices_gets_those_behind_one_switch() -> None:
    nvml = FakeNvml(gpu(0, switch=1), gpu(1, switch=2), gpu(2, switch=3), gpu(3, switch=2))
    inventory = convert.inventory(None, discover("n", nvml).devices)
    (lies,) = place(inventory, [SliceRequest("wide-1", "wide", 1024, mechanism="timeslice", devices=2)])
    assert isinstance(lies, Placement)
    assert set(lies.all_devices) == {"GPU-1", "GPU-3"}


def test_a_gpu_that_is_lost_leaves_the_others() -> None:
    nvml = FakeNvml(gpu(0), gpu(1, lost=NVMLError("GPU is lost")), gpu(2))
    found = discover("n", nvml)
    assert [d.id for d in found.devices] == ["GPU-0", "GPU-2"]
    assert found.reasons == ("GPU 1 is left out: GPU is lost",)
    assert nvml.open == 0


def test_without_a_driver_there_is_a_reason() -> None:
    found = discover("n", FakeNvml(init=NVMLError("Driver Not Loaded")))
    assert found == Discovery((), ("NVML cannot be used: Driver Not Loaded",), usable=False)


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
