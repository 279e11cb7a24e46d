"""Claims, measured: a value beside the bar it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """`value` is None where it could not be measured; such a bar is not met."""

    value: float | None
    bar: float
    met: bool


def at_most(value: float | None, bar: float) -> Bar:
    """A claim that a value does not exceed its bar."""
    return Bar(None if value is None else round(value, 3), bar, value is not None and value <= bar)


def at_least(value: float | None, bar: float) -> Bar:
    """A claim that a value reaches its bar."""
    return Bar(None if value is None else round(value, 3), bar, value is not None and value >= bar)


def verdict_lines(bars: Mapping[str, Bar]) -> list[str]:
    """A line a bar, for people."""
    lines = []
    for name, bar in bars.items():
        value = "none" if bar.value is None else f"{bar.value:.3f}".rstrip("0").rstrip(".")
        lines.append(f"{'met   ' if bar.met else 'MISSED'}  {name}: {value} (bar {bar.bar:g})")
    return lines
