from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tangram.node.measure import Meter, Usage

HZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024
BORN = 1000 * HZ
"""Start time of Instances here, in ticks: 1000 s after boot. Samples are told in seconds since then."""


class Proc:
    """A stand-in for /proc whose processes use what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(
        self, pid: int, cpu_s: float = 0.0, *, children: tuple[int, ...] = (), start_ticks: int = BORN, pss_mib: int = 0
    ) -> None:
        """A process, its CPU time with that of children it has waited for, and its PSS (0: the kernel denies it)."""
        task = self.folder / str(pid) / "task" / str(pid)
        task.mkdir(parents=True, exist_ok=True)
        ticks = round(cpu_s * HZ)
        stat = f"{pid} (server) S 1 {pid} {pid} 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0 {start_ticks} 0 0\n"
        (self.folder / str(pid) / "stat").write_text(stat)
        (task / "children").write_text("".join(f"{child} " for child in children))
        if pss_mib:
            (self.folder / str(pid) / "smaps_rollup").write_text(f"head\nRss: 9 kB\nPss: {pss_mib * 1024} kB\n")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.folder / str(pid))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


class Clock:
    """The meter's own cost clock: each reading of memory takes `cost` seconds."""

    def __init__(self) -> None:
        self.cost = 0.0
        self._now = 0.0

    def __call__(self) -> float:
        self._now += self.cost / 2
        return self._now


@pytest.fixture
def cost() -> Clock:
    return Clock()


@pytest.fixture
def meter(proc: Proc, cost: Clock, monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return Meter(str(proc.folder), cost)


def sample(meter: Meter, at_s: float, *, pid: int = 10, start_ticks: int = BORN) -> Usage | None:
    return meter.sample({"a": (pid, start_ticks)}, BORN / HZ + at_s).get("a")


def cpu(meter: Meter, at_s: float) -> float | None:
    usage = sample(meter, at_s)
    assert usage is not None
    return usage.cpu_percent


# --- CPU ---


def test_cpu_is_the_growth_between_samples_over_their_distance(proc: Proc, meter: Meter) -> None:
    proc.set(10, 5.0)
    assert cpu(meter, 100.0) is None
    proc.set(10, 5.5)
    assert cpu(meter, 101.0) == pytest.approx(50.0)
    proc.set(10, 8.5)
    assert cpu(meter, 103.0) == pytest.approx(150.0)
    assert cpu(meter, 104.0) == 0.0


def test_no_more_is_told_than_the_machine_has(proc: Proc, meter: Meter) -> None:
    proc.set(10, 0.0)
    cpu(meter, 1.0)
    proc.set(10, 100.0)
    assert cpu(meter, 2.0) == 400.0


def test_children_and_grandchildren_count(proc: Proc, meter: Meter) -> None:
    proc.set(10, 1.0, children=(11, 12))
    proc.set(11, 1.0, children=(13,))
    proc.set(12, 1.0)
    proc.set(13, 1.0)
    cpu(meter, 1.0)
    for pid, children in ((10, (11, 12)), (11, (13,)), (12, ()), (13, ())):
        proc.set(pid, 1.2, children=children)
    assert cpu(meter, 2.0) == pytest.approx(80.0)


def test_a_child_that_ends_moves_to_its_parents_figure(proc: Proc, meter: Meter) -> None:
    proc.set(10, 1.0, children=(11,))
    proc.set(11, 2.0)
    cpu(meter, 1.0)
    proc.set(10, 3.5)
    proc.end(11)
    assert cpu(meter, 2.0) == pytest.approx(50.0)


def test_a_child_lost_between_two_readings_is_passed_over_once_and_made_up_for(proc: Proc, meter: Meter) -> None:
    proc.set(10, 1.0, children=(11,))
    proc.set(11, 2.0)
    cpu(meter, 1.0)
    proc.set(10, 1.5, children=(11,))
    proc.set(11, 2.0)
    assert cpu(meter, 2.0) == pytest.approx(50.0)
    # The parent was read before it had waited for the child, which then was gone.
    proc.set(10, 1.5)
    proc.end(11)
    assert cpu(meter, 3.0) == pytest.approx(50.0), "the last known"
    proc.set(10, 4.5)
    assert cpu(meter, 4.0) == pytest.approx(50.0), "1 s of CPU over the two seconds"


def test_a_child_that_nobody_waits_for_makes_one_gap_only(proc: Proc, meter: Meter) -> None:
    proc.set(10, 1.0, children=(11,))
    proc.set(11, 50.0)
    cpu(meter, 1.0)
    proc.set(10, 1.0)
    proc.end(11)
    assert cpu(meter, 2.0) is None
    assert cpu(meter, 3.0) == 0.0
    proc.set(10, 1.5)
    assert cpu(meter, 4.0) == pytest.approx(50.0)


def test_what_a_late_found_process_used_before_does_not_count(proc: Proc, meter: Meter) -> None:
    proc.set(10, 1.0)
    cpu(meter, 100.0)
    proc.set(10, 1.0, children=(11, 12))
    proc.set(11, 30.0, start_ticks=BORN + 50 * HZ)
    proc.set(12, 0.25, start_ticks=BORN + round(100.5 * HZ))
    assert cpu(meter, 101.0) == pytest.approx(25.0), "only what began since"
    proc.set(11, 30.5, start_ticks=BORN + 50 * HZ)
    assert cpu(meter, 102.0) == pytest.approx(50.0)


def test_a_child_whose_parent_has_ended_still_counts(proc: Proc, meter: Meter) -> None:
    proc.set(10, 0.0, children=(11,))
    proc.set(11, 0.0, children=(12,))
    proc.set(12, 0.0)
    cpu(meter, 1.0)
    proc.end(11)
    proc.set(10, 0.0)
    proc.set(12, 0.3)
    assert cpu(meter, 2.0) == pytest.approx(30.0)


def test_a_number_used_again_is_another_process(proc: Proc, meter: Meter) -> None:
    proc.set(10, 0.0, children=(11,))
    proc.set(11, 0.0)
    cpu(meter, 1.0)
    proc.set(10, 0.0)
    proc.set(11, 99.0, start_ticks=BORN + HZ)
    assert cpu(meter, 2.0) == 0.0
    proc.set(10, 0.0, start_ticks=BORN + 2 * HZ)
    assert sample(meter, 3.0, start_ticks=BORN + 1) is None


def test_an_instance_started_again_begins_anew(proc: Proc, meter: Meter) -> None:
    proc.set(10, 5.0)
    cpu(meter, 1.0)
    proc.set(10, 0.5, start_ticks=BORN + 2 * HZ)
    usage = sample(meter, 3.0, start_ticks=BORN + 2 * HZ)
    assert usage is not None and usage.cpu_percent is None


def test_one_that_is_gone_has_no_usage_and_is_forgotten(proc: Proc, meter: Meter) -> None:
    assert sample(meter, 1.0) is None
    proc.set(10, 5.0)
    cpu(meter, 2.0)
    assert meter.sample({}, BORN / HZ + 3.0) == {}
    assert cpu(meter, 4.0) is None


# --- memory ---


def memory(meter: Meter, at_s: float) -> float | None:
    usage = sample(meter, at_s)
    assert usage is not None
    return usage.memory_mib


def test_memory_is_the_pss_of_the_tree(proc: Proc, meter: Meter) -> None:
    proc.set(10, children=(11,), pss_mib=100)
    proc.set(11, pss_mib=28)
    assert memory(meter, 1.0) == 128.0


def test_where_pss_is_denied_resident_memory_is_told(proc: Proc, meter: Meter) -> None:
    proc.set(10, children=(11,))
    (proc.folder / "10" / "statm").write_text(f"900 {3 * MIB // PAGE} 0 0 0 0 0\n")
    proc.set(11)
    assert memory(meter, 1.0) == 3.0


def test_memory_of_a_young_instance_is_read_often_and_later_every_five_seconds(proc: Proc, meter: Meter) -> None:
    seen = []
    for at_s in (0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0):
        proc.set(10, pss_mib=round(10 * at_s) + 1)
        seen.append(memory(meter, at_s))
    assert seen == [1, 6, 11, 21, 41, 41, 81, 81, 81, 141, 141]


def test_memory_that_is_dear_to_read_is_read_seldom(proc: Proc, meter: Meter, cost: Clock) -> None:
    cost.cost = 0.2
    proc.set(10, pss_mib=100)
    assert memory(meter, 100.0) == 100.0
    proc.set(10, pss_mib=200)
    # 0.2 s are half a percent of 20 s (the clock here moves half a step a reading).
    assert memory(meter, 119.0) == 100.0
    assert memory(meter, 140.5) == 200.0
