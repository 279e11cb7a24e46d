from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.console import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (312, "5m12s"),
        (720, "12m"),
        (3 * 3600 + 240, "3h4m"),
        (86_400 * 2 + 3600, "2d1h"),
        (86_400 * 400, "1y35d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_ages_of_what_never_was() -> None:
    assert units.age(None, 5.0) == "-"
    assert units.age(0.0, 61.0) == "1m1s"


@pytest.mark.parametrize(
    ("mib", "text"), [(None, "-"), (0, "0Mi"), (61.3, "61Mi"), (1024, "1Gi"), (1536, "1.5Gi"), (143_771, "140Gi")]
)
def test_memory(mib: float | None, text: str) -> None:
    assert units.memory(mib) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.25, "0.25"),
        (41.25, "41.2"),
        (41.0, "41"),
        (1240.4, "1240"),
        (-1.5, "-1.50"),
        (1e308, "1e+308"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert units.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.83, "0.8ms"), (12.4, "12ms"), (1250, "1.25s"), (60_000, "60s")]
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert units.milliseconds(value) == text


def test_counts() -> None:
    assert [units.count(n, "replica") for n in (0, 1, 2)] == ["0 replicas", "1 replica", "2 replicas"]


@given(st.floats(0, 1e9))
def test_all_of_them_fit_a_column(value: float) -> None:
    assert len(units.duration(value)) <= 6
    assert len(units.memory(min(value, 1e7))) <= 6


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ((), ""),
        (("a/gpu-0",), "a/gpu-0"),
        (("a/gpu-0", "a/gpu-1"), "a/gpu-0,gpu-1"),
        (("GPU-1", "GPU-2"), "GPU-1 +1"),
        (("a/gpu-0", "a/gpu-1", "a/gpu-2"), "a/gpu-0 +2"),
    ],
)
def test_devices(ids: tuple[str, ...], text: str) -> None:
    assert units.devices(ids) == text


def test_compute() -> None:
    assert (units.compute(20, 1), units.compute(100, 4)) == ("20%", "4x100%")
