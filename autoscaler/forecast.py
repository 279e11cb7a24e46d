"""What rate to plan for when a replica asked for now would be ready: several simple experts, judged online.

Arrivals are counted in buckets of 10 s. At the end of each bucket every expert says the rate one horizon ahead:

    last, minute, five minutes     the mean of the last 2, 6, 30 buckets
    blend                          half the last half minute, half the last five minutes
    trend                          the last minute, carried on by its change over the minute before, damped
    every P                        for P of 1, 2, 3, 5, 10, 15, 20, 30 and 60 min: the mean of what up to three
                                   earlier periods brought at that phase, each shifted by how the level has moved since

When the bucket comes, each expert's error is known, in units of the root of the rate, as Poisson's.
Its mean and its upward spread, both exponentially forgotten, turn a prediction into a quantile; the quantile's pinball
loss, forgotten likewise, is how an expert is judged, and its weight in the forecast is (least loss / its loss)^8.

Two rates come out: `middle`, and `high`, which is exceeded seldom. The errors contain the chance of single arrivals, so
no model of the noise is needed. What was forecast for times that are still to come is kept: a replica is not removed
before what it was ordered for has passed.

Sources: Cesa-Bianchi and Lugosi, "Prediction, Learning, and Games" (2006), on experts; Koenker and Bassett (1978) on
the pinball loss; Gibbs and Candes, "Adaptive conformal inference" (2021), on calibrating quantiles online.
"""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

BUCKET_S = 10.0
PERIODS_S = (60, 120, 180, 300, 600, 900, 1200, 1800, 3600)
_PLAIN = ("the last 20 s", "the last minute", "the last 5 minutes", "half a minute and 5 minutes", "the trend")
NAMES = (*_PLAIN, *(f"what came every {p // 60} min" for p in PERIODS_S))
EXPERTS = len(NAMES)
HIGH_Z = 1.1
"""Upward deviations from an expert's mean error to the high forecast."""
SOON_Z = 0.8
"""The same where a replica is there within SOON_S, and being wrong is soon mended; up to LATER_S it rises to HIGH_Z."""
SOON_S, LATER_S = 8.0, 33.0
MIDDLE_Z = 0.0
QUANTILE = 0.9
"""At which experts are compared."""
SCALE_POWER = 0.5
LEAST_SHARE = 0.1
"""Of an error's variance, what is left at least when the chance of single arrivals is taken off."""
FORGET = 0.005
"""Weight of the newest error."""
FIRST_SPREAD = 0.05
"""Variance of an error before any is known, and the number of errors that it stands for."""
FIRST_COUNT = 30
LOSS_FORGET = 0.005
SHARPNESS = 8.0
_PERIODIC_AFTER = 10
"""Errors after which a periodic expert has a say."""
_KEPT = 1081
"""Sums kept: three hours."""
_MOST_KEPT = _KEPT + 360
"""Before the older ones are dropped: it takes as long as a forecast, so it is done once an hour."""
_LONGEST_S = 600.0


class Forecast(NamedTuple):
    """A rate for a time: requests per second."""

    due: float
    middle: float
    high: float


class Expert(NamedTuple):
    """How one expert has done; errors are in units of the root of the rate."""

    errors: int = 0
    bias: float = 0.0
    spread: float = FIRST_SPREAD
    """Twice the mean square of the errors above the bias: the variance, of the upper side."""
    loss: float = 1.0


class History(NamedTuple):
    """What is remembered; immutable, about 20 KiB at most."""

    ends: float
    """When the bucket that is being filled ends."""
    arrivals: float = 0.0
    """Running total (window.Mark) when it began."""
    covered: float = 0.0
    """Running total of the seconds that reports covered when it began."""
    sums: bytes = b"\0" * 8
    """Doubles: running sums of the rates of past buckets, in buckets."""
    buckets: int = 0
    """Past buckets in all."""
    experts: tuple[Expert, ...] = (Expert(),) * EXPERTS
    open: tuple[tuple[int, tuple[float, ...]], ...] = ()
    """Predictions that are not judged yet: the bucket they are for, and each expert's rate (negative: none)."""
    issued: tuple[Forecast, ...] = ()
    """Forecasts for times that may still come, oldest first."""
    best: int = 0
    """The expert with the most weight."""


def begin(now: float, phase: float = 0.0) -> History:
    """Nothing seen yet. `phase` (0 to 1) shifts the buckets, so that many models do not all forecast in one tick."""
    return History(ends=now + BUCKET_S * (1.0 + phase % 1.0))


def observe(history: History, arrivals: float, covered_s: float, horizon_s: float, now: float) -> History:
    """The history at a time when running totals are `arrivals` in `covered_s` seconds of reports.

    Nothing happens before `history.ends`; what no report covered is no silence.
    """
    if now < history.ends:
        return history
    count, covered = arrivals - history.arrivals, covered_s - history.covered
    past = array("d", history.sums)
    known = len(past) - 1
    # What reports did not cover is filled with the last known minute: a second after a long gap says little about ten,
    # and the phases of periods stay where they are.
    unseen, before = 0.0, 0.0
    if known and covered < 0.5 * BUCKET_S:
        minute = min(6, known)
        unseen, before = 0.5 * BUCKET_S - covered, (past[-1] - past[-1 - minute]) / minute
    level = (count + before * unseen) / (covered + unseen) if covered + unseen > 0.0 else 0.0
    missed = int((now - history.ends) // BUCKET_S)
    filled = history._replace(ends=history.ends + BUCKET_S * (missed + 1), arrivals=arrivals, covered=covered_s)
    if not known and covered <= 0.0:
        return filled
    for _ in range(min(missed + 1, _KEPT)):
        past.append(past[-1] + level)
    if len(past) > _MOST_KEPT:
        past = array("d", [s - past[-_KEPT] for s in past[-_KEPT:]])
    buckets = history.buckets + missed + 1
    if past[-1] == past[0]:
        # Nothing in all that is kept: there is nothing to judge or to expect.
        return filled._replace(sums=past.tobytes(), buckets=buckets, open=(), issued=())
    experts, still_open = (
        _judge(history, buckets, level)
        if covered >= 0.5 * BUCKET_S
        else (history.experts, tuple(o for o in history.open if o[0] > buckets))
    )
    ahead = max(1, math.ceil(min(horizon_s, _LONGEST_S) / BUCKET_S))
    rates = _predict(past, ahead)
    z = SOON_Z + (HIGH_Z - SOON_Z) * min(1.0, max(0.0, (horizon_s - SOON_S) / (LATER_S - SOON_S)))
    forecast, best = _mix(rates, experts, z, now + min(horizon_s, _LONGEST_S))
    return filled._replace(
        sums=past.tobytes(),
        buckets=buckets,
        experts=experts,
        open=(*still_open, (buckets + ahead, rates)),
        issued=(*(f for f in history.issued if f.due > now), forecast),
        best=best,
    )


def latest(history: History) -> Forecast | None:
    """The forecast made at the end of the last bucket."""
    return history.issued[-1] if history.issued else None


def _judge(
    history: History, bucket: int, rate: float
) -> tuple[tuple[Expert, ...], tuple[tuple[int, tuple[float, ...]], ...]]:
    experts = history.experts
    for due, rates in history.open:
        if due > bucket:
            break
        if due == bucket:
            experts = tuple(
                expert if said < 0.0 else _judged(expert, said, rate)
                for expert, said in zip(experts, rates, strict=True)
            )
    return experts, tuple(o for o in history.open if o[0] > bucket)


def _judged(expert: Expert, said: float, rate: float) -> Expert:
    errors, bias, spread, loss = expert
    scale = _scale(said)
    error = (rate - said) / scale
    miss = error - bias - HIGH_Z * math.sqrt(spread)
    loss += LOSS_FORGET * ((QUANTILE * miss if miss > 0.0 else (QUANTILE - 1.0) * miss) * scale - loss)
    weight = max(FORGET, 1.0 / (errors + FIRST_COUNT))
    bias += weight * (error - bias)
    over = max(0.0, error - bias)
    spread += weight * (2.0 * over * over - spread)
    return Expert(errors + 1, bias, spread, loss)


def _scale(rate: float) -> float:
    return float(max(rate, 0.3) ** SCALE_POWER)


def _predict(sums: array[float], ahead: int) -> tuple[float, ...]:
    """Each expert's rate `ahead` buckets after the last; negative where it has none."""
    n = len(sums) - 1
    end = sums[n]

    def mean(buckets: int) -> float:
        first = max(0, n - buckets)
        return (end - sums[first]) / (n - first)

    minute, five = mean(6), mean(30)
    before = (sums[n - 6] - sums[max(0, n - 12)]) / min(6, n - 6) if n > 6 else minute
    trend = max(0.0, minute + (minute - before) * min(1.5, ahead / 6.0))
    rates = [mean(2), minute, five, 0.5 * mean(3) + 0.5 * five, trend]
    for period_s in PERIODS_S:
        period = int(period_s // BUCKET_S)
        window = min(period, 30)
        cycles = min(3, (n - window) // period)
        if cycles < 2:
            rates.append(-1.0)
            continue
        level = (end - sums[n - window]) / window
        total = 0.0
        # The phase one horizon ahead, in the last period of which it is known.
        back = period * (1 + (ahead - 1) // period)
        used = 0
        for cycle in range(cycles):
            at = n - 1 + ahead - back - cycle * period
            base = n - (cycle + 1) * period
            if at < 0 or base < window:
                break
            total += sums[at + 1] - sums[at] + level - (sums[base] - sums[base - window]) / window
            used += 1
        rates.append(max(0.0, total / used) if used else -1.0)
    return tuple(rates)


def _mix(rates: tuple[float, ...], experts: tuple[Expert, ...], z: float, due: float) -> tuple[Forecast, int]:
    plain = len(_PLAIN)
    sayers = [
        (i, rate, expert)
        for i, (rate, expert) in enumerate(zip(rates, experts, strict=True))
        if rate >= 0.0 and (i < plain or expert.errors >= _PERIODIC_AFTER)
    ]
    least = max(1e-9, min(expert.loss for _, _, expert in sayers))
    weights = middle = high = 0.0
    best, most = 0, 0.0
    for i, rate, (_, bias, spread, loss) in sayers:
        weight = (least / max(loss, 1e-9)) ** SHARPNESS
        if weight > most:
            best, most = i, weight
        # The errors contain the chance of single arrivals, which staffing.py reckons with again: less its variance.
        scale = _scale(rate)
        total = scale * scale * spread
        deviation = math.sqrt(max(total - rate / BUCKET_S, LEAST_SHARE * total))
        weights += weight
        middle += weight * max(0.0, rate + scale * bias + MIDDLE_Z * deviation)
        high += weight * max(0.0, rate + scale * bias + z * deviation)
    return Forecast(due, middle / weights, high / weights), best
