"""The NVIDIA GPUs of this machine, as the packer's Devices, by NVML.

Needs the extra `nvidia`; without it, or without a driver, there are no devices and a reason in words. NVML is
imported, opened and closed within one call.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass, replace
from typing import Any, Final

from packer.inventory import Device
from tangram.node.links import distances, nvlinks
from tangram.node.mechanisms import offered

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found, and in words what was not and why."""

    devices: tuple[Device, ...]
    reasons: tuple[str, ...] = ()
    usable: bool = True
    """Whether NVML could be asked at all."""


def discover(node: str, nvml: Any = None) -> Discovery:
    """Devices of the machine, named `node`; never raises. `nvml` stands in for the module pynvml."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Discovery(
                (),
                ("NVML's Python binding is not installed; install tangram-serving[nvidia] to use GPUs",),
                usable=False,
            )
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Discovery((), (f"NVML cannot be used: {error}",), usable=False)
    devices, reasons, handles, usable = [], [], {}, True
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                devices.append(_device(nvml, handle, index, node, driver))
                handles[devices[-1].id] = handle
            except nvml.NVMLError as error:
                reasons.append(f"GPU {index} is left out: {error}")
        if len(handles) > 1:
            links, far = nvlinks(nvml, handles), distances(nvml, handles)
            devices = [replace(d, links=links[d.id], distances=far[d.id]) for d in devices]
    except nvml.NVMLError as error:
        reasons.append(f"NVML cannot be used: {error}")
        usable = False
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return Discovery(tuple(devices), tuple(reasons), usable)


def _device(nvml: Any, handle: Any, index: int, node: str, driver: str) -> Device:
    total, reserved = _memory(nvml, handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    mig = _mig_enabled(nvml, handle)
    device = Device(
        id=nvml.nvmlDeviceGetUUID(handle),
        node=node,
        model=nvml.nvmlDeviceGetName(handle),
        memory_mib=total // _MIB,
        reserve_mib=-(-reserved // _MIB),
        labels={
            "tangram.dev/index": str(index),
            "tangram.dev/driver": driver,
            "tangram.dev/compute-capability": f"{major}.{minor}",
            "tangram.dev/mig": "enabled" if mig else "disabled",
        },
    )
    return replace(device, mechanisms=offered(device, cut=mig, capability=(major, minor)))


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """Bytes of memory, and of those what the driver keeps for itself."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total), 0
    return int(memory.total), int(memory.reserved)


def _mig_enabled(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)
