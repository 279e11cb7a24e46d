"""MIG: GPU instances made and destroyed by NVML, and the environment that shows a process one of them.

`repartition` brings a device to a layout: it destroys the instances that the layout does not name and creates those
that are missing, each with one compute instance over all its slices. What the layout names and is there is not touched.
It is idempotent: after a failure in between, the same call does the rest. Whoever asks must know that nobody uses what
is destroyed; the driver refuses to destroy an instance with a process on it, and that refusal is passed on.

Making instances needs root (or the capability that nvidia-capabilities grants) and MIG mode, which is set when a
machine is prepared: changing it resets the GPU.

This module has been run against a stand-in for NVML only.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from packer.inventory import Device, MigInstance
from packer.mig import geometry_of, verify_layout
from tangram.node.mechanisms.slices import SliceSettings

#: Compute slices -> name of the compute instance profile that has them all.
_WHOLE: Final = {n: f"NVML_COMPUTE_INSTANCE_PROFILE_{n}_SLICE" for n in (1, 2, 3, 4, 6, 7, 8)}


class MigError(RuntimeError):
    """A layout could not be made; says which instance and why."""


def settings(uuids: Sequence[str]) -> SliceSettings:
    """Show the process these MIG devices alone, by their own UUIDs, as `repartition` gives them."""
    return SliceSettings({"CUDA_VISIBLE_DEVICES": ",".join(uuids)})


def repartition(
    device: Device,
    layout: Collection[MigInstance],
    nvml: Any = None,
    *,
    needs: Mapping[MigInstance, int] = MappingProxyType({}),
) -> dict[MigInstance, str]:
    """Give a device this layout; returns the UUID of the MIG device that each instance is. Raises MigError.

    `nvml` stands in for the module pynvml. `needs` is what MiB an instance must have: a profile has somewhat less than
    its name says, which only the driver knows.
    """
    geometry = geometry_of(device.model, device.memory_mib)
    if geometry is None:
        raise MigError(f"no MIG geometry is known for {device.model} with {device.memory_mib:,} MiB")
    if wrong := verify_layout(geometry.model, layout):
        raise MigError(f"the layout of {device.id} is not legal: {'; '.join(wrong)}")
    nvml = importlib.import_module("pynvml") if nvml is None else nvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MigError(f"NVML cannot be used: {error}") from None
    try:
        gpu = _Gpu(nvml, device.id)
        gpu.check(needs)
        return gpu.bring_to(layout)
    except nvml.NVMLError as error:
        raise MigError(f"{device.id} cannot be repartitioned: {error}") from None
    finally:
        nvml.nvmlShutdown()


class _Gpu:
    """One GPU in MIG mode, NVML being open."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml = nvml
        self._uuid = uuid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if nvml.nvmlDeviceGetMigMode(self._handle)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            raise MigError(
                f"MIG mode of {uuid} is off; turn it on while nobody uses the GPU: nvidia-smi -i {uuid} -mig 1"
            )
        self._profiles = self._all_profiles()

    def check(self, needs: Mapping[MigInstance, int]) -> None:
        """MigError where a profile has less memory than an instance of it must have."""
        for instance, needed in needs.items():
            info = self._profiles.get(instance.profile)
            if info is not None and info.memorySizeMB < needed:
                raise MigError(
                    f"{instance.profile} of {self._uuid} has {info.memorySizeMB:,} MiB, and the slice is guaranteed "
                    f"{needed:,} MiB; ask for no more than the first, or for what the next profile has"
                )

    def bring_to(self, layout: Collection[MigInstance]) -> dict[MigInstance, str]:
        there = self._instances()
        for instance in sorted(there.keys() - set(layout)):
            self._destroy(instance, there.pop(instance))
        for instance in sorted(set(layout) - there.keys()):
            there[instance] = self._create(instance)
        for instance, handle in there.items():
            if not self._compute_instances(handle, self._profiles[instance.profile].sliceCount):
                # Left over from an attempt that was cut short.
                self._fill(instance, handle)
        uuids = self._uuids()
        numbers = {i: self._nvml.nvmlGpuInstanceGetInfo(h).id for i, h in there.items() if i in layout}
        missing = [i for i, n in numbers.items() if n not in uuids]
        if missing:
            raise MigError(f"{_words(missing[0])} of {self._uuid} was made and shows no device")
        return {i: uuids[n] for i, n in numbers.items()}

    # --- what there is ---

    def _all_profiles(self) -> dict[str, Any]:
        """NVML's facts by the name of the profile, such as "3g.40gb"."""
        found: dict[str, Any] = {}
        for number in range(self._nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                info = self._nvml.nvmlDeviceGetGpuInstanceProfileInfo(self._handle, number)
            except self._nvml.NVMLError:
                # The device has no such profile.
                continue
            name = info.name.decode() if isinstance(info.name, bytes) else str(info.name)
            found[name.removeprefix("MIG ")] = info
        return found

    def _instances(self) -> dict[MigInstance, Any]:
        found: dict[MigInstance, Any] = {}
        for name, info in self._profiles.items():
            handles = (self._nvml.c_nvmlGpuInstance_t * max(1, info.instanceCount))()
            count = ctypes.c_uint(0)
            self._nvml.nvmlDeviceGetGpuInstances(self._handle, info.id, handles, ctypes.byref(count))
            for handle in handles[: count.value]:
                start = int(self._nvml.nvmlGpuInstanceGetInfo(handle).placement.start)
                found[MigInstance(start, name)] = handle
        return found

    def _compute_instances(self, handle: Any, slices: int) -> list[Any]:
        try:
            profile = self._compute_profile(handle, slices)
        except self._nvml.NVMLError:
            # The instance has no such compute instances.
            return []
        found = (self._nvml.c_nvmlComputeInstance_t * max(1, profile.instanceCount))()
        count = ctypes.c_uint(0)
        self._nvml.nvmlGpuInstanceGetComputeInstances(handle, profile.id, found, ctypes.byref(count))
        return list(found[: count.value])

    def _compute_profile(self, handle: Any, slices: int) -> Any:
        nvml = self._nvml
        return nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
            handle, getattr(nvml, _WHOLE[slices]), nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
        )

    def _uuids(self) -> dict[int, str]:
        """UUIDs of MIG devices by the number of their GPU instance."""
        nvml = self._nvml
        found: dict[int, str] = {}
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)):
            try:
                handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
            except nvml.NVMLError:
                # Numbers have gaps.
                continue
            found[nvml.nvmlDeviceGetGpuInstanceId(handle)] = str(nvml.nvmlDeviceGetUUID(handle))
        return found

    # --- changes ---

    def _destroy(self, instance: MigInstance, handle: Any) -> None:
        try:
            for slices in range(1, self._profiles[instance.profile].sliceCount + 1):
                if slices in _WHOLE:
                    for inner in self._compute_instances(handle, slices):
                        self._nvml.nvmlComputeInstanceDestroy(inner)
            self._nvml.nvmlGpuInstanceDestroy(handle)
        except self._nvml.NVMLError as error:
            raise MigError(f"{_words(instance)} of {self._uuid} cannot be destroyed: {error}") from None

    def _create(self, instance: MigInstance) -> Any:
        nvml = self._nvml
        info = self._profiles.get(instance.profile)
        if info is None:
            known = ", ".join(sorted(self._profiles))
            raise MigError(f"{self._uuid} has no profile {instance.profile}; the driver offers {known}")
        places = (nvml.c_nvmlGpuInstancePlacement_t * 16)()
        count = ctypes.c_uint(len(places))
        nvml.nvmlDeviceGetGpuInstancePossiblePlacements(self._handle, info.id, places, ctypes.byref(count))
        place = next((p for p in places[: count.value] if p.start == instance.start), None)
        if place is None:
            raise MigError(f"the driver lets no {instance.profile} start at slot {instance.start} of {self._uuid}")
        try:
            handle = nvml.nvmlDeviceCreateGpuInstanceWithPlacement(self._handle, info.id, ctypes.byref(place))
        except nvml.NVMLError as error:
            raise MigError(f"{_words(instance)} of {self._uuid} cannot be created: {error}") from None
        self._fill(instance, handle)
        return handle

    def _fill(self, instance: MigInstance, handle: Any) -> None:
        """One compute instance over all slices; without it no process can use the instance."""
        try:
            profile = self._compute_profile(handle, self._profiles[instance.profile].sliceCount)
            self._nvml.nvmlGpuInstanceCreateComputeInstance(handle, profile.id)
        except self._nvml.NVMLError as error:
            raise MigError(f"{_words(instance)} of {self._uuid} gets no compute instance: {error}") from None


def _words(instance: MigInstance) -> str:
    return f"{instance.profile} at slot {instance.start}"
