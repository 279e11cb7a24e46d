"""Verdicts and tables over a finished load, from fabricated or real timelines: no clock, no network, no Locust."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.bars import Bar, verdict_lines
from loadtests.plan import Step

FOLLOW_BAR_S: Final = 15.0
#: Seconds without a look at the devices above which "never oversold" would be a guess.
UNWATCHED_BAR_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Count:
    """Replicas of one model at one moment."""

    ready: int
    starting: int = 0
    draining: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device's guaranteed ledger: MiB and percent."""

    memory: int
    """Usable: total less the reserve."""
    requested: int
    compute: int
    replicas: Mapping[str, int]
    """Replicas by model."""

    @property
    def oversold(self) -> str:
        """What is oversold, in words; empty if nothing."""
        problems = []
        if self.requested > self.memory:
            problems.append(f"{self.requested} MiB requested of {self.memory}")
        if self.compute > 100:
            problems.append(f"{self.compute}% compute requested")
        return " and ".join(problems)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the admin API; `at` is Unix seconds."""

    at: float
    models: Mapping[str, Count]
    devices: Mapping[str, DeviceState]
    oversold: tuple[str, ...] = ()
    """What the controller itself calls oversold."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What the clients saw under one name; milliseconds."""

    name: str
    requests: int
    failures: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Followed:
    """How the replicas of the stepped model followed one step."""

    step: Step
    seconds: float | None
    """Until the count of ready replicas was right; None if it never was."""
    held: float
    """Share of the looks after that at which it still was."""
    least: int
    most: int
    """Ready replicas over the step."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of an ascending sequence; 0 of an empty one."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def follow(timeline: Sequence[Sample], model: str, step: Step, began: float, ended: float) -> Followed:
    """Judge one step that lasted from `began` to `ended` (Unix seconds)."""
    looks = [(s.at, s.models[model].ready) for s in timeline if began <= s.at < ended and model in s.models]
    counts = [ready for _, ready in looks] or [0]
    first = next((i for i, (_, ready) in enumerate(looks) if ready == step.replicas), None)
    if first is None:
        return Followed(step, None, 0.0, min(counts), max(counts))
    after = counts[first:]
    held = sum(ready == step.replicas for ready in after) / len(after)
    return Followed(step, looks[first][0] - began, held, min(counts), max(counts))


def oversold(timeline: Sequence[Sample]) -> list[str]:
    """Every device ever seen oversold, with what was, once each."""
    found: dict[str, None] = {}
    for sample in timeline:
        for name, device in sample.devices.items():
            if problem := device.oversold:
                found[f"{name}: {problem}"] = None
        for text in sample.oversold:
            found[f"the controller says: {text}"] = None
    return list(found)


def longest_gap(timeline: Sequence[Sample], began: float, ended: float) -> float:
    """Seconds of the longest stretch without a look."""
    looks = [began, *sorted(s.at for s in timeline if began <= s.at <= ended), ended]
    return max(later - earlier for earlier, later in itertools.pairwise(looks))


def bars(
    requests: Sequence[Requests], followed: Sequence[Followed], timeline: Sequence[Sample], began: float, ended: float
) -> dict[str, Bar]:
    """Each claim with its measured value and whether it holds."""
    failures = sum(r.failures for r in requests)
    sent = sum(r.requests for r in requests)
    # A step that was cut off before it began never followed.
    slowest = (
        None if not followed or any(f.seconds is None for f in followed) else max(f.seconds or 0 for f in followed)
    )
    bad = oversold(timeline)
    gap = longest_gap(timeline, began, ended)
    return {
        "failed_requests": Bar(failures, 0, failures == 0 and sent > 0),
        "follow_s": Bar(slowest, FOLLOW_BAR_S, slowest is not None and slowest <= FOLLOW_BAR_S),
        "oversold_devices": Bar(len(bad), 0, not bad and bool(timeline)),
        "unwatched_s": Bar(gap, UNWATCHED_BAR_S, gap <= UNWATCHED_BAR_S),
    }


def strip(counts: Sequence[int]) -> str:
    """One character a look, its height the count: replicas over time at a glance."""
    blocks = " ▁▂▃▄▅▆▇█"
    most = max(counts, default=0)
    scale = max(most, len(blocks) - 1)
    return "".join(blocks[math.ceil(c * (len(blocks) - 1) / scale)] for c in counts)


def thin(values: Sequence[int], width: int) -> list[int]:
    """At most `width` of the values, evenly taken, each the greatest of its stretch."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [max(values[a:b]) for a, b in itertools.pairwise(edges)]


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned; the first to the left, the others to the right."""
    cells = [list(heads), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join([first, *rest]).rstrip()

    return "\n".join(line(row) for row in cells)


def render(
    requests: Sequence[Requests],
    followed: Sequence[Followed],
    timeline: Sequence[Sample],
    verdicts: Mapping[str, Bar],
) -> str:
    """All that is printed at the end."""
    parts = [
        table(
            ("requests to", "requests", "failures", "p50 ms", "p95 ms", "p99 ms"),
            [(r.name, r.requests, r.failures, f"{r.p50:.1f}", f"{r.p95:.1f}", f"{r.p99:.1f}") for r in requests],
        ),
        table(
            ("step", "req/s", "replicas", "followed", "held", "seen"),
            [
                (
                    f"{f.step.start:.0f}-{f.step.end:.0f} s",
                    f"{f.step.rate:.0f}",
                    f.step.replicas,
                    "never" if f.seconds is None else f"{f.seconds:.1f} s",
                    f"{f.held:.0%}",
                    f"{f.least}-{f.most}",
                )
                for f in followed
            ],
        ),
        "ready replicas over time\n" + _over_time(timeline),
        "most replicas seen on each device\n" + _spread(timeline),
    ]
    lines = verdict_lines(verdicts)
    parts.append("\n".join([*lines, *(f"  {text}" for text in oversold(timeline))]))
    return "\n\n".join(parts)


def _over_time(timeline: Sequence[Sample]) -> str:
    names = sorted({name for sample in timeline for name in sample.models})
    width = max((len(n) for n in names), default=0)
    rows = []
    for name in names:
        counts = [s.models[name].ready if name in s.models else 0 for s in timeline]
        rows.append(f"{name.ljust(width)}  {strip(thin(counts, 80))}  {min(counts)}-{max(counts)}")
    return "\n".join(rows)


def _spread(timeline: Sequence[Sample]) -> str:
    most: dict[str, dict[str, int]] = {}
    for sample in timeline:
        for device, state in sample.devices.items():
            seen = most.setdefault(device, {})
            for model, count in state.replicas.items():
                seen[model] = max(seen.get(model, 0), count)
    return "\n".join(
        f"{device}: " + (", ".join(f"{model} {count}" for model, count in sorted(seen.items())) or "none")
        for device, seen in sorted(most.items())
    )
