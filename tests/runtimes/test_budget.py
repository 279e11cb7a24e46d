from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.node.runtimes.embedded.budget import CoresFile, CpuBudget, cores_from


def test_a_burst_passes_then_work_rests_until_the_debt_and_a_period_are_earned() -> None:
    budget = CpuBudget(0.5, now=100.0, cpu=7.0, burst_s=0.1)
    assert budget.delay(100.0, 7.0) == 0
    assert budget.delay(100.1, 7.1) == 0, "0.1 s used, 0.05 s earned, of 0.1 s"
    assert budget.delay(100.1, 7.25) == pytest.approx(0.2 + 0.1), "0.1 s of debt, 0.05 s to start with, half a core"
    assert budget.delay(100.3, 7.25) == pytest.approx(0.1), "the debt is paid, the period's share is not there yet"
    assert budget.delay(100.401, 7.25) == 0
    assert budget.delay(100.401, 7.29) == 0, "several calls follow each other"


def test_idle_time_is_not_saved_beyond_the_burst() -> None:
    budget = CpuBudget(0.1, now=0.0, cpu=0.0, burst_s=0.05)
    assert budget.delay(3600.0, 0.0) == 0
    assert budget.delay(3600.0, 0.15) == pytest.approx(1.1)


def test_asking_again_changes_nothing() -> None:
    budget = CpuBudget(0.2, now=0.0, cpu=0.0, burst_s=0.05)
    first = budget.delay(1.0, 0.5)
    assert [budget.delay(1.0, 0.5) for _ in range(5)] == [first] * 5


@given(
    cores=st.floats(0.01, 4),
    burst=st.floats(0, 0.5),
    calls=st.lists(st.tuples(st.floats(0.0, 0.3), st.floats(0, 0.5)), min_size=1, max_size=60),
)
def test_cpu_used_never_exceeds_share_burst_and_one_call(
    cores: float, burst: float, calls: list[tuple[float, float]]
) -> None:
    budget = CpuBudget(cores, now=0.0, cpu=0.0, burst_s=burst)
    now = cpu = 0.0
    for work, pause in calls:
        now += pause
        while (delay := budget.delay(now, cpu)) > 0:
            now += delay + 1e-9
        cpu += work
        now += work
        assert cpu <= cores * now + burst + work + 1e-6


def test_a_saturated_replica_uses_its_share_and_two_use_twice_as_much() -> None:
    def served(cores: float) -> int:
        budget = CpuBudget(cores, now=0.0, cpu=0.0)
        now = cpu = 0.0
        count = 0
        while now < 60:
            while (delay := budget.delay(now, cpu)) > 0:
                now += delay + 1e-9
            now, cpu, count = now + 0.004, cpu + 0.004, count + 1
        return count

    assert served(0.1) == pytest.approx(60 * 0.1 / 0.004, rel=0.03)
    assert served(0.2) == pytest.approx(2 * served(0.1), rel=0.03)


@pytest.mark.parametrize(("text", "cores"), [(None, None), ("", None), ("0.25", 0.25), (" 2 ", 2.0)])
def test_environment(text: str | None, cores: float | None) -> None:
    assert cores_from(text) == cores


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many"])
def test_bad_environment_names_variable_and_value(text: str) -> None:
    with pytest.raises(ValueError, match=rf"TANGRAM_CPU_CORES: '{text}' is not a positive number"):
        cores_from(text)


@pytest.mark.parametrize("cores", [0.0, -1.0, math.nan, math.inf])
def test_budget_of_nothing_is_refused(cores: float) -> None:
    with pytest.raises(ValueError, match="is not a positive number"):
        CpuBudget(cores, now=0, cpu=0)


def test_a_changed_share_holds_from_then_on_and_debts_stay() -> None:
    budget = CpuBudget(0.1, now=0.0, cpu=0.0)
    assert budget.delay(0.0, 1.08) > 9.0
    budget.resize(1.0, 0.0, 1.08)
    assert budget.delay(0.0, 1.08) == pytest.approx(1.0 + 0.08)
    assert budget.delay(1.1, 1.08) == 0.0


def test_the_file_says_what_has_changed_and_no_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    file = CoresFile(str(path))
    assert file.changed(0.0) is None
    path.write_text("0.5")
    assert file.changed(0.01) is None, "it was looked at only just now"
    assert file.changed(1.0) == 0.5
    assert file.changed(2.0) is None
    path.write_text("much")
    assert file.changed(3.0) is None
    part = tmp_path / "part"
    part.write_text("0.25")
    part.replace(path)
    assert file.changed(4.0) == 0.25
