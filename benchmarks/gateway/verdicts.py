"""What the figures say: ratios with their spread, and the bars they are held to. Pure.

A ratio is taken within a round, where the machine was in the same mood for both, and the median over the rounds is what
is held to a bar. A naive proxy that costs less than `NAIVE_OVER_NGINX` times nginx says that this machine, or this run,
measures something else than proxies: then no bar is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from benchmarks.bars import Bar, at_least, at_most

NAIVE_OVER_NGINX: Final = 11.0
VALIDITY: Final = "naive_cpu_over_nginx"
#: Metric -> value of each round.
Rounds = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the values of several rounds."""

    median: float
    min: float
    max: float


@dataclass(slots=True)
class Outcome:
    """What one scenario gave."""

    figures: dict[str, Rounds] = field(default_factory=dict)
    """By who was measured."""
    failed: int = 0
    """Requests that were not answered with 200, in full."""


def spread(values: Sequence[float]) -> Spread | None:
    """None where there is no value."""
    return Spread(*(round(f(values), 3) for f in (median, min, max))) if values else None


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round; a round whose divisor is not positive (noise below zero) says nothing and is left out."""
    return [a / b for a, b in zip(above, below, strict=True) if b > 0]


def ratio(outcome: Outcome, metric: str, above: str, below: str) -> Spread | None:
    """Of two that were measured in one scenario; None where one was not."""
    if above not in outcome.figures or below not in outcome.figures:
        return None
    return spread(ratios(outcome.figures[above][metric], outcome.figures[below][metric]))


@dataclass(frozen=True, slots=True)
class Claim:
    """A bar on a ratio, or, where `below` is empty, on a figure itself."""

    scenario: str
    metric: str
    above: str
    below: str
    bar: float
    least: bool = False


CLAIMS: Final[Mapping[str, Claim]] = {
    VALIDITY: Claim("post", "cpu_us", "naive-aiohttp", "nginx", NAIVE_OVER_NGINX, least=True),
    "post_cpu_over_nginx": Claim("post", "cpu_us", "ours", "nginx", 1 / 0.60),
    "post_envoy_cpu_over_ours": Claim("post", "cpu_us", "envoy", "ours", 1.5, least=True),
    "post_naive_cpu_over_ours": Claim("post", "cpu_us", "naive-aiohttp", "ours", 6.0, least=True),
    "varied_cpu_over_nginx": Claim("varied", "cpu_us", "ours", "nginx", 1 / 0.60),
    "tensor_cpu_over_nginx": Claim("tensor", "cpu_us", "ours", "nginx", 1 / 0.8),
    "sse_cpu_over_nginx": Claim("sse", "cpu_us", "ours", "nginx", 1.1),
    "burst_cpu_over_nginx": Claim("burst", "cpu_us", "ours", "nginx", 1.1),
    "chat_cpu_over_infer": Claim("chat", "cpu_us", "ours", "ours infer", 1.3),
    "added_p50_over_nginx": Claim("rate", "added_p50_us", "ours", "nginx", 1.2),
    "rest_pss_mb": Claim("idle", "rest_mb", "ours", "", 60.0),
    "idle_connection_kib": Claim("idle", "connection_kib", "ours", "", 8.0),
    "two_workers_cpu_over_one": Claim("workers", "cpu_us", "ours two workers", "ours", 1.1),
    "soak_growth_mb": Claim("soak", "growth_mb", "ours", "", 2.0),
}


def value(claim: Claim, outcome: Outcome) -> float | None:
    """What a claim is about, as measured; None where it was not."""
    if claim.below:
        found = ratio(outcome, claim.metric, claim.above, claim.below)
    else:
        found = spread(outcome.figures.get(claim.above, {}).get(claim.metric, ()))
    return None if found is None else found.median


def bars(outcomes: Mapping[str, Outcome]) -> dict[str, Bar]:
    """The bars of the scenarios that were run."""
    judged = {}
    for name, claim in CLAIMS.items():
        if claim.scenario in outcomes:
            judge = at_least if claim.least else at_most
            judged[name] = judge(value(claim, outcomes[claim.scenario]), round(claim.bar, 3))
    judged["failed_requests"] = at_most(sum(o.failed for o in outcomes.values()), 0)
    if void(judged):
        judged = {name: replace(bar, met=False) for name, bar in judged.items()}
    return judged


def void(judged: Mapping[str, Bar]) -> bool:
    """Whether the naive proxy was too cheap for the run to say anything."""
    valid = judged.get(VALIDITY)
    return valid is not None and valid.value is not None and valid.value < NAIVE_OVER_NGINX
