"""Numbers as people read them, short enough for a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

#: What stands for a value that is not known.
NONE: Final = "-"

_AGES: Final = ((86_400 * 365, "y", 86_400, "d"), (86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def age(since: float | None, now: float) -> str:
    """Time since a moment (Unix seconds) as kubectl has it: 47s, 5m12s, 3h4m, 12d."""
    return NONE if since is None else duration(now - since)


def duration(seconds: float) -> str:
    """Two units at most, and one from ten of the greater on: 47s, 5m12s, 12m, 3h4m, 12h, 2d3h, 12d."""
    whole = max(0, int(seconds))
    for size, unit, smaller, smaller_unit in _AGES:
        if whole >= size:
            count, rest = divmod(whole, size)
            rest //= smaller
            return f"{count}{unit}" + (f"{rest}{smaller_unit}" if rest and count < 10 else "")
    return f"{whole}s"


def memory(mib: float | None) -> str:
    """MiB as 61Mi, 1.5Gi or 24Gi."""
    if mib is None:
        return NONE
    if mib < 1024:
        return f"{mib:.0f}Mi"
    gib = mib / 1024
    return f"{gib:.0f}Gi" if gib >= 100 or math.isclose(gib, round(gib)) else f"{gib:.1f}Gi"


def number(value: float | None) -> str:
    """Three figures or so: 0.25, 41.2, 1240, 1.2e+09."""
    if value is None:
        return NONE
    size = abs(value)
    if size >= 1e7:
        return f"{value:.3g}"
    if value == int(value):
        return str(int(value))
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    """0.8ms, 12ms, 1.25s."""
    if value is None:
        return NONE
    return f"{number(value / 1000)}s" if value >= 1000 else f"{value:.0f}ms" if value >= 10 else f"{value:.1f}ms"


def percent(value: float | None) -> str:
    """A percentage without decimals."""
    return NONE if value is None else f"{value:.0f}%"


def devices(ids: Sequence[str]) -> str:
    """Where a replica lies, short: node-a/gpu-0, node-a/gpu-0,gpu-1, node-a/gpu-0 +7; empty for none."""
    if len(ids) == 2 and (node := ids[0].rpartition("/")[0]) and ids[1].startswith(f"{node}/"):
        return f"{ids[0]},{ids[1].removeprefix(f'{node}/')}"
    return ids[0] + (f" +{len(ids) - 1}" if len(ids) > 1 else "") if ids else ""


def compute(percent: int, devices: int) -> str:
    """20%, or 4x100% of several devices."""
    return f"{devices}x{percent}%" if devices > 1 else f"{percent}%"


def count(number: int, noun: str) -> str:
    """1 replica, 2 replicas."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
