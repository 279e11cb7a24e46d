"""The slice of a device that a replica gets: memory, compute, mechanism, and which devices will do."""

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
    """MiB guaranteed on the device."""
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
    compute: Percent = 0
    """Percent of the device's compute, hard; 0 is best effort."""
    compute_limit: Percent | None = None
    """Percent it may grow to, of what the device has left, until more replicas are ready; `compute` where absent."""
    mechanism: Mechanism = Mechanism.VIRTUAL
    device_selector: DeviceSelector = DeviceSelector()

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
    def effective_compute_limit(self) -> int:
        """Percent an Instance may grow to."""
        return self.compute if self.compute_limit is None else self.compute_limit
