"""Ten models with shifted peaks on fewer replicas than they want: who divides how, request by request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from autoscaler.quota import SUFFER_S, Claim, share
from autoscaler.replay import Ours
from autoscaler.simulate import Outcome, Requests, Starts, View, Workload, draw
from autoscaler.staffing import replicas_for
from autoscaler.together import simulate_together
from autoscaler.trace import Trace
from benchmarks.autoscaler.scenarios import LEARNING_S, Bar, late_percent, policy

MODELS = 10
ALL_PEAKS = 45
"""Replicas with which nobody is ever refused any."""
START_S = 30.0
RATE_S = 30.0
"""Over which a model's rate is averaged."""
_SLOTS, _SERVICE_S, _LATE = 8, 2.0, 0.05
_BIN_S = 60.0
_MARGIN = 1.15
"""Over the rate: what a forecast adds."""


def workloads(rng: np.random.Generator) -> list[Workload]:
    """An hourly peak of each model, twice its low, at a time of its own, so that all together want 45 at most."""
    t = np.arange(round(3600.0 / _BIN_S)) * _BIN_S
    phases = (np.arange(MODELS) + rng.uniform(-0.5, 0.5, MODELS)) / MODELS
    sizes = rng.uniform(0.7, 1.3, MODELS)
    shapes = sizes[:, None] * (0.75 + 0.25 * np.cos(2 * np.pi * (t / 3600.0 - phases[:, None])))
    capacity = _SLOTS / _SERVICE_S

    def most(scale: float) -> int:
        wants = [[replicas_for(_MARGIN * r * scale, capacity, _SLOTS, 1.0, _LATE) for r in shape] for shape in shapes]
        return int(np.array(wants).sum(axis=0).max())

    scale = max(scale for scale in np.arange(5.0, 30.0, 0.05) if most(float(scale)) <= ALL_PEAKS)
    return [
        Workload(f"m{m}", Trace(_BIN_S, tuple((shape * scale * _BIN_S).tolist())), _SLOTS, _SERVICE_S, 0.8, 1.0)
        for m, shape in enumerate(shapes)
    ]


class _Fleet:
    """What each model wants, by the library, and who gets what of it, by `divide`."""

    def __init__(self, works: list[Workload], quota: int, divide: Callable[[_Fleet, list[int]], list[int]]) -> None:
        self.quota = quota
        self.scalers = [Ours(policy(work), START_S, m / MODELS) for m, work in enumerate(works)]
        self.views: list[View] = []
        self.given = [0] * len(works)
        self.suffered = [0.0] * len(works)
        self.rates = [0.0] * len(works)
        self.pending: deque[int] = deque()
        self.refused = 0
        self._divide = divide

    def __call__(self, views: list[View]) -> list[int]:
        self.views = views
        wants = [scaler(view) for scaler, view in zip(self.scalers, views, strict=True)]
        self.given = self._divide(self, wants) if sum(wants) > self.quota else wants
        self.refused += sum(wants) - sum(self.given)
        return self.given


def ours(fleet: _Fleet, wants: list[int]) -> list[int]:
    """By marginal value (autoscaler.quota)."""
    claims = []
    for m, (scaler, view, want) in enumerate(zip(fleet.scalers, fleet.views, wants, strict=True)):
        last = scaler.last
        assert last is not None
        fleet.rates[m] += ((view.sample.arrivals or 0) - fleet.rates[m]) / RATE_S
        refused = max(0.0, 1.0 - fleet.given[m] / want) if want else 0.0
        fleet.suffered[m] += (refused - fleet.suffered[m]) / SUFFER_S
        claims.append(
            Claim(
                str(m),
                want,
                max(fleet.rates[m], last.expected or 0.0),
                last.capacity or _SLOTS / _SERVICE_S,
                _SLOTS,
                suffered=fleet.suffered[m],
                held=fleet.given[m],
                queued=view.sample.queued or 0.0,
            )
        )
    return [grant.replicas for grant in share(claims, fleet.quota)]


def equal(fleet: _Fleet, wants: list[int]) -> list[int]:
    """To each its share and no more."""
    least, more = divmod(fleet.quota, MODELS)
    return [min(want, least + (m < more)) for m, want in enumerate(wants)]


def first_come(fleet: _Fleet, wants: list[int]) -> list[int]:
    """Who has keeps; what comes free goes to who asked first."""
    given = [min(had, want) for had, want in zip(fleet.given, wants, strict=True)]
    missing = [want - has for want, has in zip(wants, given, strict=True)]
    waiting: deque[int] = deque()
    for m in fleet.pending:
        if missing[m] > 0:
            waiting.append(m)
            missing[m] -= 1
    for m, more in enumerate(missing):
        waiting.extend([m] * more)
    for _ in range(fleet.quota - sum(given)):
        if not waiting:
            break
        given[waiting.popleft()] += 1
    fleet.pending = waiting
    return given


WAYS: dict[str, Callable[[_Fleet, list[int]], list[int]]] = {"ours": ours, "equal": equal, "first come": first_come}


def shared_quota(seed: int, *, quick: bool) -> dict[str, Bar]:
    """An hour on quotas of 32, 36 and 40 replicas where 45 would serve all; starts of 30 s."""
    works = workloads(np.random.default_rng(seed))
    requests = [draw(work, np.random.default_rng((seed, m))) for m, work in enumerate(works)]
    bars: dict[str, Bar] = {}
    for quota in (36,) if quick else (32, 36, 40):
        runs = {way: _run(works, requests, quota, divide) for way, divide in WAYS.items()}
        late = {way: [late_percent(o, LEARNING_S) for o in outcomes] for way, (outcomes, _) in runs.items()}
        means = {way: float(np.mean(shares)) for way, shares in late.items()}
        worst = max(late["ours"]) / max(1e-9, means["ours"])
        least = min(means["equal"], means["first come"])
        value = {
            **{way: round(mean, 2) for way, mean in means.items()},
            "times better": round(least / max(1e-9, means["ours"]), 2),
            "worst over mean": round(worst, 2),
            "refused on average": round(runs["ours"][1], 2),
        }
        bars[f"quota of {quota}"] = Bar(
            value, "mean violations at least 2x lower, worst <= 3x", 2.0 * means["ours"] <= least and worst <= 3.0
        )
    return bars


def _run(
    works: list[Workload], requests: list[Requests], quota: int, divide: Callable[[_Fleet, list[int]], list[int]]
) -> tuple[list[Outcome], float]:
    fleet = _Fleet(works, quota, divide)
    first = [quota // MODELS] * MODELS
    fleet.given = list(first)
    outcomes = simulate_together(
        works, requests, fleet, Starts(START_S), np.random.default_rng(2), first=first, quota=quota
    )
    return outcomes, fleet.refused / outcomes[0].seconds
