"""A Slice as it was placed, and what every mechanism says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from packer.inventory import Device, MigInstance


@dataclass(frozen=True, slots=True)
class GivenSlice:
    """What an Instance was given: so much of each of these devices."""

    mechanism: str
    devices: tuple[Device, ...]
    """In the order in which the process numbers them."""
    compute: int
    """Percent of each; 0 is without a bound."""
    memory_mib: int
    """Guaranteed on each."""
    memory_limit_mib: int
    """It may grow to this on each."""
    mig: tuple[MigInstance, ...] = ()
    """For the mechanism "mig": the GPU instance on each device."""


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """What a process needs so that it has its Slice and, where the mechanism can hold it, no more."""

    env: Mapping[str, str] = field(default_factory=dict)
    cpu_cores: float | None = None
    """Cores that stand for the slice's compute; None is unbounded."""
