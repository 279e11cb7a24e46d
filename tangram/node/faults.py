"""Faults that GPUs report while they run, as NVML's events: XID errors.

Most XIDs mean that the GPU, its memory or its links need a reset or a technician. Some are an application's own doing
(a page fault, a kernel that was stopped) and say nothing of the GPU: those that NVIDIA's device plugin for Kubernetes
leaves out are left out here.

Events are kept by the driver from when they are registered for, so NVML stays open between two looks.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Final

#: Graphics engine exception, page fault, stopped processing, preemptive cleanup, video processor, context switch.
APPLICATION: Final = frozenset({13, 31, 43, 45, 68, 109})
_MOST: Final = 1_000
"""Events read at one look."""


class Faults:
    """Registers for the faults of every GPU there is. `nvml` stands in for the module pynvml; calls may block."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._events: Any = None
        self._registered: set[str] = set()

    def look(self) -> dict[str, int]:
        """By uuid: the XID of the last fault since the last look. Empty where NVML does not tell; never raises."""
        try:
            nvml = self._nvml = importlib.import_module("pynvml") if self._nvml is None else self._nvml
        except ImportError:
            return {}
        try:
            return self._look(nvml)
        except nvml.NVMLError:
            # A driver that was replaced: begin anew at the next look.
            self.close()
            return {}

    def close(self) -> None:
        """Forget all; nothing where nothing is open."""
        if self._events is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._events)
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._events = None
        self._registered.clear()

    def _look(self, nvml: Any) -> dict[str, int]:
        if self._events is None:
            nvml.nvmlInit()
            try:
                self._events = nvml.nvmlEventSetCreate()
            except nvml.NVMLError:
                nvml.nvmlShutdown()
                raise
        self._register(nvml)
        found: dict[str, int] = {}
        for _ in range(_MOST):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError_Timeout:
                break
            if event.eventType == nvml.nvmlEventTypeXidCriticalError and event.eventData not in APPLICATION:
                found[str(nvml.nvmlDeviceGetUUID(event.device))] = int(event.eventData)
        return found

    def _register(self, nvml: Any) -> None:
        for index in range(nvml.nvmlDeviceGetCount()):
            # One that is lost has no handle, and some old ones report no events.
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if (uuid := str(nvml.nvmlDeviceGetUUID(handle))) not in self._registered:
                    self._registered.add(uuid)
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
