"""Outlier detection on virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.health import OutlierDetector, Reason, Vitals
from gateway.wire import Health


@dataclass
class One:
    vitals: Vitals = field(default_factory=Vitals)


class Ward:
    def __init__(self, count: int, **policy) -> None:
        self.all = [One() for _ in range(count)]
        self.it = OutlierDetector(Health(**policy))
        self.now = 100.0

    def fail(self, index: int, times: int = 1, **how) -> None:
        for _ in range(times):
            self.it.failed(self.all[index], self.all, self.now, **{"unreachable": False, **how})

    def answer(self, index: int, seconds: float, times: int = 10) -> None:
        for _ in range(times):
            vitals = self.all[index].vitals
            vitals.sent(self.now)
            vitals.answering(seconds, self.now)
            self.it.succeeded(self.all[index], self.now)

    def review(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.it.review(self.all, self.now)

    def probe(self, *, well: bool) -> list[int]:
        """Probe whoever is due; indexes of those."""
        due = self.it.due(self.all, self.now)
        for one in due:
            self.it.probed(one, self.all, well=well, now=self.now)
        return [i for i, one in enumerate(self.all) if any(one is d for d in due)]

    @property
    def ejected(self) -> list[int]:
        out = [i for i, one in enumerate(self.all) if one.vitals.ejected]
        assert len(out) == self.it.out
        return out


def test_failures_in_a_row_eject_and_a_success_starts_the_count_anew():
    ward = Ward(2)
    ward.fail(0, 4)
    ward.answer(0, 0.1, 1)
    ward.fail(0, 4)
    assert ward.ejected == []
    ward.fail(0)
    assert ward.ejected == [0]
    assert ward.it.counts == {Reason.ERRORS: 1}


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)])
def test_never_more_than_half_and_never_the_last(count, most):
    ward = Ward(count)
    for index in range(count):
        ward.fail(index, 5)
    assert len(ward.ejected) == most


def test_the_last_stays_even_where_all_may_be_ejected():
    ward = Ward(3, max_ejected_percent=100)
    for index in range(3):
        ward.fail(index, 5)
    assert ward.ejected == [0, 1]


def test_each_ejection_in_a_row_lasts_twice_as_long_up_to_the_bound():
    ward = Ward(2, max_ejection_s=35.0)
    lasted = []
    for _ in range(4):
        ward.fail(0, 5)
        lasted.append(ward.all[0].vitals.until - ward.now)
        ward.now = ward.all[0].vitals.until
        assert ward.probe(well=True) == [0]
    assert lasted == [10.0, 20.0, 35.0, 35.0]


def test_a_probe_that_fails_keeps_it_out_and_it_is_asked_again():
    ward = Ward(2)
    ward.fail(0, 5)
    ward.now += 9.9
    assert ward.probe(well=True) == []
    ward.now += 0.1
    assert ward.probe(well=False) == [0]
    assert ward.ejected == [0]
    assert ward.probe(well=True) == []
    ward.now += 1.0
    assert ward.probe(well=True) == [0]
    assert ward.ejected == []


def test_on_trial_one_failure_is_enough():
    ward = Ward(2)
    ward.fail(0, 5)
    ward.now += 10.0
    ward.probe(well=True)
    ward.answer(0, 0.1, 2)
    ward.fail(0)
    assert ward.ejected == [0]
    ward.now += 20.0
    ward.probe(well=True)
    ward.answer(0, 0.1, 3)
    ward.fail(0, 4)
    assert ward.ejected == []


def test_who_refused_connections_is_back_with_the_first_good_probe():
    ward = Ward(2)
    ward.fail(0, 5, unreachable=True)
    ward.now += 1.0
    assert ward.probe(well=False) == [0]
    ward.now += 1.0
    assert ward.probe(well=True) == [0]
    assert ward.ejected == []


def test_a_slow_one_among_equals_is_ejected_and_one_slow_answer_is_not_slowness():
    ward = Ward(3)
    for index in range(3):
        ward.answer(index, 0.05)
    ward.answer(1, 30.0, 1)
    ward.review()
    assert ward.ejected == []
    ward.answer(1, 1.0, 12)
    ward.review()
    assert ward.ejected == [1]
    assert ward.it.counts == {Reason.SLOW: 1}


def test_all_equally_slow_is_nobodys_fault():
    ward = Ward(4)
    for index in range(4):
        ward.answer(index, 20.0)
    ward.review()
    assert ward.ejected == []


def test_microseconds_are_no_slowness():
    ward = Ward(2)
    ward.answer(0, 0.001)
    ward.answer(1, 0.02)
    ward.review()
    assert ward.ejected == []


def test_one_that_answers_nothing_is_ejected_long_before_the_timeout():
    ward = Ward(3)
    for index in range(3):
        ward.answer(index, 0.05)
    ward.all[2].vitals.sent(ward.now)
    ward.review(1.9)
    assert ward.ejected == []
    ward.review(0.3)
    assert ward.ejected == [2]
    assert ward.it.counts == {Reason.SILENT: 1}


def test_silence_counts_from_the_last_answer_and_only_while_something_is_awaited():
    ward = Ward(2)
    ward.answer(0, 0.05)
    ward.answer(1, 0.05)
    ward.review(1000.0)
    assert ward.ejected == []
    ward.all[1].vitals.sent(ward.now)
    ward.now += 1.5
    ward.answer(1, 0.05, 1)
    ward.review(1.5)
    assert ward.ejected == []


def test_when_siblings_leave_the_floor_brings_them_back():
    ward = Ward(4)
    ward.fail(0, 5)
    ward.now += 1.0
    ward.fail(1, 5)
    ward.all = ward.all[:3]
    ward.it.keep_floor(ward.all, ward.now)
    assert ward.ejected == [1]


def test_slow_start_grows_from_a_tenth():
    vitals = Vitals(joined=10.0, ramp_s=20.0)
    assert [vitals.ramp(at) for at in (10.0, 20.0, 30.0, 99.0)] == [0.1, 0.5, 1.0, 1.0]
    assert Vitals().ramp(0.0) == 1.0


def test_policies_can_be_turned_off():
    ward = Ward(2, consecutive_errors=0, slow_factor=0.0)
    ward.fail(0, 1000)
    ward.answer(1, 0.01)
    ward.answer(0, 10.0)
    ward.review()
    assert ward.ejected == []
