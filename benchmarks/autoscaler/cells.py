"""The twelve cells: four public traces times three cold-start times, with the reference costs measured for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoscaler.simulate import Workload
from autoscaler.trace import Trace, parse


@dataclass(frozen=True)
class Case:
    file: str
    bins: tuple[int, int] | None
    scale: float
    slots: int
    service_s: float
    service_cv: float
    slo_s: float
    reference: dict[int, float]
    """Cold start in seconds -> replica-seconds of the cheapest clairvoyant plan found with at most 1% violations."""
    published: dict[int, dict[str, tuple[float, float]]]
    """Cold start -> policy -> (cost over the reference, violations in percent) of one seeded run elsewhere."""


POLICIES = ("hpa70", "kpa-rps70", "kpa-conc70", "ray50", "threshold70")


def _published(*rows: tuple[tuple[float, float], ...]) -> dict[int, dict[str, tuple[float, float]]]:
    return {d: dict(zip(POLICIES, row, strict=True)) for d, row in zip((5, 30, 90), rows, strict=True)}


CASES = {
    "conv": Case(
        "azllm2023_conv_1s.csv", None, 1.0, 8, 8.0, 0.8, 2.0, {5: 24115, 30: 23746, 90: 24126},
        _published(
            ((1.43, 0.79), (1.26, 0.00), (1.24, 0.07), (1.96, 0.00), (1.29, 0.49)),
            ((1.45, 1.51), (1.27, 1.23), (1.29, 1.18), (2.00, 0.00), (1.31, 1.18)),
            ((1.43, 5.98), (1.24, 4.48), (1.47, 2.88), (2.12, 0.89), (1.29, 5.24)),
        ),
    ),
    "azbig": Case(
        "azf2019_bd33ce4b_7d_60s.csv", (1740, 2460), 1.0, 4, 0.4, 0.5, 1.0, {5: 295326, 30: 305398, 90: 310569},
        _published(
            ((1.38, 0.00), (1.41, 0.03), (1.41, 0.01), (2.04, 0.00), (1.48, 0.00)),
            ((1.34, 0.00), (1.36, 0.11), (1.39, 0.08), (1.97, 0.00), (1.43, 0.00)),
            ((1.32, 0.00), (1.34, 0.31), (1.39, 0.22), (1.94, 0.00), (1.41, 0.00)),
        ),
    ),
    "aze3": Case(
        "azf2019_e369a477_7d_60s.csv", (1740, 2460), 1.0, 4, 2.0, 0.5, 1.0, {5: 202191, 30: 219086, 90: 237799},
        _published(
            ((1.58, 1.37), (1.28, 1.75), (1.41, 1.17), (2.56, 0.33), (1.31, 6.13)),
            ((1.46, 2.12), (1.21, 8.70), (1.80, 6.90), (2.64, 0.59), (1.20, 9.49)),
            ((1.35, 3.77), (1.16, 24.47), (2.96, 19.99), (2.59, 1.02), (1.11, 17.63)),
        ),
    ),
    "sgl": Case(
        "servegen_mlarge_2d_10s.csv", (0, 4320), 0.1, 8, 2.0, 0.8, 1.0, {5: 303882, 30: 317630, 90: 335534},
        _published(
            ((1.42, 0.61), (1.35, 0.73), (1.42, 0.68), (2.19, 0.31), (1.39, 1.08)),
            ((1.36, 0.70), (1.29, 1.18), (1.42, 1.22), (2.09, 0.33), (1.32, 1.13)),
            ((1.28, 0.82), (1.23, 1.89), (1.43, 1.92), (1.98, 0.34), (1.25, 1.27)),
        ),
    ),
}  # fmt: skip


def load(name: str, data: Path) -> Workload:
    """The workload of a case; all its cells share it."""
    case = CASES[name]
    with (data / case.file).open() as lines:
        trace: Trace = parse(lines)
    if case.bins:
        trace = trace.part(*case.bins)
    return Workload(name, trace.scaled(case.scale), case.slots, case.service_s, case.service_cv, case.slo_s)
