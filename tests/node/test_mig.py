"""MIG by NVML, against a stand-in that keeps the driver's rules: slots, users, and instances within instances."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from packer.inventory import Device, MigInstance
from packer.mig import GEOMETRIES
from tangram.node.mechanisms import mig

GPU = Device("GPU-1", "n", "NVIDIA H100 80GB HBM3", 81_559, mechanisms=frozenset({"mig"}))
PROFILES = GEOMETRIES["H100-80"].profiles


class NVMLError(Exception):
    pass


class Placement(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint), ("size", ctypes.c_uint))


class FakeNvml:
    """One GPU. GPU instances are numbered; each may hold one compute instance, of the same number."""

    NVMLError = NVMLError
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_GPU_INSTANCE_PROFILE_COUNT = 18
    NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED = 0
    c_nvmlGpuInstance_t = ctypes.c_void_p  # noqa: N815
    c_nvmlComputeInstance_t = ctypes.c_void_p  # noqa: N815
    c_nvmlGpuInstancePlacement_t = Placement  # noqa: N815

    def __init__(self, mode: int = 1) -> None:
        self.mode = mode
        self.open = 0
        self.instances: dict[int, MigInstance] = {}
        self.inner: dict[int, int] = {}
        """Slices of the compute instance of each."""
        self.used: set[int] = set()
        self.next = 1
        self.calls: list[str] = []
        self.no_compute = False
        for slices, number in ((1, 0), (2, 1), (3, 2), (4, 3), (7, 4), (8, 5), (6, 6)):
            setattr(self, f"NVML_COMPUTE_INSTANCE_PROFILE_{slices}_SLICE", number)
        self._slices = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7, 5: 8, 6: 6}

    def add(self, instance: MigInstance, used: bool = False) -> int:
        number, self.next = self.next, self.next + 1
        self.instances[number] = instance
        self.inner[number] = self._profile(instance.profile).slices
        self.used |= {number} if used else set()
        return number

    def _profile(self, name: str) -> Any:
        return GEOMETRIES["H100-80"].profile(name)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"NVML has no {name} here")

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetMigMode(self, _: str) -> tuple[int, int]:  # noqa: N802
        return self.mode, self.mode

    def nvmlDeviceGetGpuInstanceProfileInfo(self, _: str, number: int) -> SimpleNamespace:  # noqa: N802
        if number >= len(PROFILES):
            raise NVMLError("Not Supported")
        p = PROFILES[number]
        return SimpleNamespace(
            id=10 + number,
            name=f"MIG {p.name}".encode(),
            sliceCount=p.slices,
            instanceCount=len(p.starts),
            memorySizeMB=p.memory_mib - 512,
        )

    def nvmlDeviceGetGpuInstances(self, _: str, profile: int, out: Any, count: Any) -> None:  # noqa: N802
        name = PROFILES[profile - 10].name
        numbers = [n for n, i in self.instances.items() if i.profile == name]
        for place, number in enumerate(numbers):
            out[place] = number
        count._obj.value = len(numbers)

    def nvmlGpuInstanceGetInfo(self, number: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(id=number, placement=SimpleNamespace(start=self.instances[number].start))

    def nvmlDeviceGetGpuInstancePossiblePlacements(self, _: str, profile: int, out: Any, count: Any) -> None:  # noqa: N802
        p = PROFILES[profile - 10]
        for place, start in enumerate(p.starts):
            out[place].start, out[place].size = start, p.size
        count._obj.value = len(p.starts)

    def nvmlDeviceCreateGpuInstanceWithPlacement(self, _: str, profile: int, placement: Any) -> int:  # noqa: N802
        p, start = PROFILES[profile - 10], placement._obj.start
        taken = {s for i in self.instances.values() for s in range(i.start, i.start + self._profile(i.profile).size)}
        if taken & set(range(start, start + p.size)):
            raise NVMLError("Insufficient Resources")
        number, self.next = self.next, self.next + 1
        self.instances[number] = MigInstance(start, p.name)
        self.calls.append(f"create {p.name}@{start}")
        return number

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(self, number: int, profile: int, _: int) -> SimpleNamespace:  # noqa: N802
        slices = self._slices[profile]
        if slices in (6, 8) or slices > self._profile(self.instances[number].profile).slices:
            raise NVMLError("Not Supported")
        return SimpleNamespace(id=profile, instanceCount=1)

    def nvmlGpuInstanceCreateComputeInstance(self, number: int, profile: int) -> int:  # noqa: N802
        if self.no_compute:
            raise NVMLError("Insufficient Resources")
        self.inner[number] = self._slices[profile]
        return number

    def nvmlGpuInstanceGetComputeInstances(self, number: int, profile: int, out: Any, count: Any) -> None:  # noqa: N802
        there = self.inner.get(number) == self._slices[profile]
        if there:
            out[0] = number
        count._obj.value = int(there)

    def nvmlComputeInstanceDestroy(self, number: int) -> None:  # noqa: N802
        if number in self.used:
            raise NVMLError("In use by another client")
        del self.inner[number]

    def nvmlGpuInstanceDestroy(self, number: int) -> None:  # noqa: N802
        assert number not in self.inner, "a compute instance is still there"
        self.calls.append(f"destroy {self.instances[number].profile}@{self.instances[number].start}")
        del self.instances[number]

    def nvmlDeviceGetMaxMigDeviceCount(self, _: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: str, index: int) -> int:  # noqa: N802
        shown = sorted(self.inner)
        # Numbers have gaps.
        if index == 0 or index > len(shown):
            raise NVMLError("Not Found")
        return shown[index - 1]

    def nvmlDeviceGetGpuInstanceId(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetUUID(self, number: int) -> str:  # noqa: N802
        return f"MIG-{number}"


FOUR, THREE, ONE = MigInstance(0, "4g.40gb"), MigInstance(4, "3g.40gb"), MigInstance(6, "1g.10gb")


def test_what_is_missing_is_made_and_what_is_not_named_goes() -> None:
    nvml = FakeNvml()
    kept = nvml.add(FOUR, used=True)
    nvml.add(ONE)
    uuids = mig.repartition(GPU, [FOUR, THREE], nvml)
    assert nvml.calls == ["destroy 1g.10gb@6", "create 3g.40gb@4"]
    assert uuids == {FOUR: f"MIG-{kept}", THREE: "MIG-3"}
    assert nvml.inner == {kept: 4, 3: 3}
    assert nvml.open == 0
    assert mig.settings([uuids[THREE]]).env == {"CUDA_VISIBLE_DEVICES": "MIG-3"}
    assert mig.repartition(GPU, [FOUR, THREE], nvml) == uuids
    assert len(nvml.calls) == 2


def test_a_profile_that_has_less_than_is_guaranteed_is_not_made() -> None:
    nvml = FakeNvml()
    with pytest.raises(mig.MigError, match=r"1g.10gb of GPU-1 has 9,728 MiB, and the slice is guaranteed 10,000 MiB"):
        mig.repartition(GPU, [ONE], nvml, needs={ONE: 10_000})
    assert nvml.calls == []
    assert mig.repartition(GPU, [ONE], nvml, needs={ONE: 9_728}) == {ONE: "MIG-1"}


def test_a_whole_device_is_given_back() -> None:
    nvml = FakeNvml()
    nvml.add(MigInstance(0, "7g.80gb"))
    assert mig.repartition(GPU, [], nvml) == {}
    assert (nvml.instances, nvml.inner) == ({}, {})


def test_an_instance_in_use_is_not_destroyed_and_nothing_is_made() -> None:
    nvml = FakeNvml()
    nvml.add(MigInstance(0, "1g.10gb"), used=True)
    with pytest.raises(mig.MigError, match=r"1g.10gb at slot 0 of GPU-1 cannot be destroyed: In use"):
        mig.repartition(GPU, [FOUR], nvml)
    assert nvml.calls == []
    assert nvml.open == 0


def test_an_attempt_that_was_cut_short_is_finished() -> None:
    nvml = FakeNvml()
    nvml.no_compute = True
    with pytest.raises(mig.MigError, match="gets no compute instance"):
        mig.repartition(GPU, [THREE], nvml)
    nvml.no_compute = False
    assert mig.repartition(GPU, [THREE], nvml) == {THREE: "MIG-1"}
    assert nvml.calls == ["create 3g.40gb@4"]


@pytest.mark.parametrize(
    ("device", "layout", "nvml", "words"),
    [
        (GPU, [FOUR], FakeNvml(mode=0), "MIG mode of GPU-1 is off"),
        (GPU, [FOUR, MigInstance(2, "2g.20gb")], FakeNvml(), "not legal: slot 2 is both"),
        (Device("GPU-1", "n", "Tesla T4", 15_360), [], FakeNvml(), "no MIG geometry is known for Tesla T4"),
        (Device("GPU-9", "n", GPU.model, GPU.memory_mib), [], FakeNvml(), "GPU-9 cannot be repartitioned: Not Found"),
    ],
)
def test_what_cannot_be_done_is_said(device: Device, layout: list[MigInstance], nvml: FakeNvml, words: str) -> None:
    with pytest.raises(mig.MigError, match=words):
        mig.repartition(device, layout, nvml)
    assert nvml.open == 0
