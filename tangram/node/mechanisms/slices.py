"""What every mechanism says of a Slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SliceSettings:
    """What a process needs so that it has its Slice and, where the mechanism can hold it, no more."""

    env: Mapping[str, str] = field(default_factory=dict)
    cpu_cores: float | None = None
    """Cores that stand for the slice's compute; None is unbounded."""
