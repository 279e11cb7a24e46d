from __future__ import annotations

import pytest

from loadtests.plan import Step
from loadtests.report import (
    Count,
    DeviceState,
    Followed,
    Requests,
    Sample,
    bars,
    follow,
    longest_gap,
    oversold,
    percentile,
    render,
    strip,
    table,
    thin,
)

STEP = Step(start=24, end=48, users=26, rate=52, replicas=3)


def timeline(*ready: int, began: float = 1000.0, device: DeviceState | None = None) -> list[Sample]:
    """A look a second, from `began` on."""
    state = device or DeviceState(memory=1000, requested=600, compute=60, replicas={"digits": 2})
    return [Sample(began + i, {"digits": Count(n)}, {"node-a/gpu-0": state}) for i, n in enumerate(ready)]


def followed(seconds: float | None, replicas: int = 3) -> Followed:
    return Followed(STEP, seconds, 1.0, 1, replicas)


ALL_WELL = [Requests("digits", 100, 0, 3.0, 6.0, 9.0)]


def test_a_step_is_followed_when_the_count_is_first_right() -> None:
    verdict = follow(timeline(1, 1, 2, 2, 3, 3, 3, 3), "digits", STEP, 1000, 1024)
    assert (verdict.seconds, verdict.held, verdict.least, verdict.most) == (4, 1.0, 1, 3)


def test_overshoot_and_flapping_show() -> None:
    verdict = follow(timeline(1, 3, 4, 3, 2, 3), "digits", STEP, 1000, 1024)
    assert (verdict.seconds, verdict.held, verdict.most) == (1, 0.6, 4)


def test_a_count_that_comes_after_the_step_has_ended_is_too_late() -> None:
    assert follow(timeline(1, 1, 3, 3), "digits", STEP, 1000, 1002).seconds is None


def test_a_model_that_is_not_there_never_follows() -> None:
    assert follow(timeline(3, 3), "other", STEP, 1000, 1024).seconds is None


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (DeviceState(memory=1000, requested=1001, compute=0, replicas={}), "1001 MiB requested of 1000"),
        (DeviceState(memory=1000, requested=0, compute=101, replicas={}), "101% compute requested"),
    ],
)
def test_one_look_at_an_oversold_device_is_enough(device: DeviceState, told: str) -> None:
    looks = [*timeline(3, 3), *timeline(3, began=1002, device=device), *timeline(3, began=1003)]
    assert oversold(looks) == [f"node-a/gpu-0: {told}"]
    bar = bars(ALL_WELL, [followed(3)], looks, 1000, 1004)["oversold_devices"]
    assert (bar.value, bar.met) == (1, False)


def test_a_device_that_is_exactly_full_is_not_oversold() -> None:
    assert oversold(timeline(1, device=DeviceState(memory=1000, requested=1000, compute=100, replicas={}))) == []


def test_what_the_controller_calls_oversold_counts_too() -> None:
    looks = [Sample(1000, {}, {}, oversold=("node-a/gpu-1",))]
    assert oversold(looks) == ["the controller says: node-a/gpu-1"]


def test_a_good_run_meets_every_bar() -> None:
    verdicts = bars(ALL_WELL, [followed(3.0), followed(14.9)], timeline(*[3] * 24), 1000, 1024)
    assert all(bar.met for bar in verdicts.values())
    assert verdicts["follow_s"].value == 14.9


def test_one_failed_request_misses_the_bar() -> None:
    requests = [*ALL_WELL, Requests("ngram", 9, 1, 3.0, 6.0, 9.0)]
    bar = bars(requests, [followed(3)], timeline(3), 1000, 1001)["failed_requests"]
    assert (bar.value, bar.met) == (1, False)


def test_no_requests_at_all_is_not_a_good_run() -> None:
    assert not bars([], [followed(3)], timeline(3), 1000, 1001)["failed_requests"].met


@pytest.mark.parametrize(
    ("steps", "value"), [([followed(2), followed(15.1)], 15.1), ([followed(2), followed(None)], None), ([], None)]
)
def test_a_step_followed_late_or_never_misses_the_bar(steps: list[Followed], value: float | None) -> None:
    bar = bars(ALL_WELL, steps, timeline(3), 1000, 1001)["follow_s"]
    assert (bar.value, bar.met) == (value, False)


def test_a_claim_over_time_wants_the_time_watched() -> None:
    looks = [*timeline(3, 3), *timeline(3, 3, began=1012)]
    assert longest_gap(looks, 1000, 1014) == 11
    assert not bars(ALL_WELL, [followed(3)], looks, 1000, 1014)["unwatched_s"].met
    assert not bars(ALL_WELL, [followed(3)], [], 1000, 1004)["oversold_devices"].met


def test_the_end_tells_requests_steps_replicas_and_bars() -> None:
    looks = timeline(1, 1, 2, 3, 3, 3)
    steps = [follow(looks, "digits", STEP, 1000, 1006)]
    text = render(ALL_WELL, steps, looks, bars(ALL_WELL, steps, looks, 1000, 1006))
    assert "digits            100         0     3.0     6.0     9.0" in text
    assert "24-48 s     52         3     3.0 s  100%   1-3" in text
    assert "digits  ▁▁▂▃▃▃  1-3" in text
    assert "node-a/gpu-0: digits 2" in text
    assert "met     follow_s: 3 (bar 15)" in text
    assert "MISSED" not in text


def test_percentiles_are_of_values_that_were_measured() -> None:
    values = [float(v) for v in range(1, 201)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [100, 190, 198, 200]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) == 0.0


def test_a_long_timeline_keeps_its_peaks() -> None:
    counts = [1] * 50 + [5] + [1] * 49
    assert len(thin(counts, 10)) == 10
    assert max(thin(counts, 10)) == 5
    assert thin([1, 2], 10) == [1, 2]


def test_many_replicas_still_fit_one_character_each() -> None:
    assert strip([0, 20, 40]) == " ▄█"
    assert strip([]) == ""


def test_columns_are_aligned() -> None:
    assert table(("a", "n"), [("long name", 1), ("b", 200)]).splitlines() == [
        "a            n",
        "long name    1",
        "b          200",
    ]
