"""The slice of a device that a replica gets: memory, compute, mechanism, and which devices will do.

A replica that spans several devices (`devices`, for tensor parallelism) takes them whole: all their usable memory,
which is `memory.request` each at least, all their compute, and nobody beside it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from tangram.spec.base import Doc, Percent
from tangram.spec.quantity import MiB, mib_text


class Mechanism(StrEnum):
    VIRTUAL = "virtual"
    TIMESLICE = "timeslice"
    MPS = "mps"
    MIG = "mig"
    HAMI = "hami"
    DRA = "dra"


class SliceMemory(Doc):
    request: Annotated[MiB, Field(ge=1)]
    """MiB guaranteed on the device; of several devices what each must have at least."""
    limit: Annotated[MiB, Field(ge=1)] | None = None
    """MiB it may grow to while the device has room; the request where absent."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.limit is not None and self.limit < self.request:
            raise ValueError(
                f"limit {mib_text(self.limit)} is less than request {mib_text(self.request)}; "
                "raise the limit or lower the request"
            )
        return self

    @property
    def effective_limit(self) -> int:
        """MiB an Instance may grow to."""
        return self.request if self.limit is None else self.limit


class DeviceSelector(Doc):
    """Which Devices a Slice may lie on; every given condition must hold."""

    models: tuple[str, ...] = ()
    """Device models allowed, any of them."""
    match_labels: dict[str, str] = {}
    """Labels of the Device or its Node."""


class SliceSpec(Doc):
    memory: SliceMemory
    devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Devices of one node that a replica spans; more than one are taken whole, those that are linked best."""
    compute: Percent = 0
    """Percent of the device's compute, hard; 0 is best effort. Absent is 0, and 100 of each of several devices."""
    compute_limit: Percent | None = None
    """Percent it may grow to, of what the device has left, until more replicas are ready; `compute` where absent."""
    mechanism: Mechanism = Mechanism.VIRTUAL
    device_selector: DeviceSelector = DeviceSelector()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.whole:
            return self
        if "compute" not in self.model_fields_set:
            self.__dict__["compute"] = 100
        taken = f"a replica of {self.devices} devices takes them whole"
        if self.compute != 100:
            raise ValueError(f"compute {self.compute}: {taken}; leave compute out, or ask for one device")
        if self.compute_limit is not None:
            raise ValueError(f"computeLimit {self.compute_limit}: {taken} and has nothing to grow to; leave it out")
        if self.memory.limit is not None:
            raise ValueError(
                f"memory.limit {mib_text(self.memory.limit)}: {taken}, with all their memory; leave it out"
            )
        if self.mechanism in (Mechanism.MIG, Mechanism.MPS):
            raise ValueError(
                f"mechanism {self.mechanism.value}: {taken}, and {self.mechanism.value.upper()} gives parts; "
                "name another mechanism, or ask for one device"
            )
        return self

    @model_validator(mode="after")
    def _growing(self) -> Self:
        if self.compute_limit is None:
            return self
        if self.compute_limit < self.compute:
            raise ValueError(
                f"computeLimit {self.compute_limit} is less than compute {self.compute}; raise it or leave it out"
            )
        if not self.compute:
            raise ValueError("computeLimit is given without compute; a slice grows from what it is guaranteed")
        if self.mechanism is not Mechanism.VIRTUAL:
            raise ValueError(
                f"computeLimit: the mechanism {self.mechanism.value} cannot change the compute of a running replica; "
                "leave it out"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether a replica takes whole devices, several of them."""
        return self.devices > 1

    @property
    def effective_compute_limit(self) -> int:
        """Percent an Instance may grow to."""
        return self.compute if self.compute_limit is None else self.compute_limit
