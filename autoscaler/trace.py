"""Request rates over time, as a CSV tells them: a comment line with `bin_s=`, a header `count`, requests per bin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_BIN = re.compile(r"\bbin_s=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in each bin of `bin_s` seconds."""

    bin_s: float
    counts: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Length of the whole."""
        return self.bin_s * len(self.counts)

    @property
    def mean_rate(self) -> float:
        """Requests per second."""
        return sum(self.counts) / self.seconds

    def part(self, first: int, last: int) -> Trace:
        """The bins from `first` up to, not with, `last`."""
        if not 0 <= first < last <= len(self.counts):
            raise ValueError(f"bins {first}..{last} of {len(self.counts)}; name a range that the trace has")
        return replace(self, counts=self.counts[first:last])

    def scaled(self, factor: float) -> Trace:
        """The same shape at another rate."""
        return replace(self, counts=tuple(count * factor for count in self.counts))


def parse(lines: Iterable[str], bin_s: float | None = None) -> Trace:
    """A trace from the lines of its CSV; `bin_s` stands in where no comment line tells it.

    Raises ValueError naming the line where a count is no number or negative, and where no bin length is known.
    """
    counts: list[float] = []
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line == "count":
            continue
        if line.startswith("#"):
            if found := _BIN.search(line):
                bin_s = float(found[1])
            continue
        try:
            count = float(line)
        except ValueError:
            raise ValueError(f"line {number}: {line[:40]!r} is no count; write one number a line") from None
        if not 0.0 <= count < 1e12:
            raise ValueError(f"line {number}: {line[:40]!r} is out of range; a count is 0 or more")
        counts.append(count)
    if not counts:
        raise ValueError("no counts; write one number a line, requests in each bin")
    if bin_s is None or bin_s <= 0:
        raise ValueError("the bin length is missing; begin with a line '# bin_s=60'")
    return Trace(bin_s, tuple(counts))
