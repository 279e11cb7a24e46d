from __future__ import annotations

import random

import pytest

from autoscaler import capacity


def work(learned, rng, seconds, rate, service_s, slots=8, ready=4, now=0.0):
    """Seconds of exponential services at a level load."""
    flight = rate * service_s
    for _ in range(seconds):
        now += 1.0
        done = sum(rng.random() < 0.1 for _ in range(round(rate * 10)))
        learned = capacity.observe(learned, done, flight, 1.0, ready, slots, 1.0, now)
    return learned, now


def test_nothing_is_known_before_enough_was_seen():
    learned, _ = work(capacity.Learned(), random.Random(1), 2, 5.0, 0.5)

    assert capacity.known(learned, 8) is None


def test_slots_over_service_time_with_its_uncertainty():
    learned, _ = work(capacity.Learned(), random.Random(1), 300, 20.0, 0.5)

    known = capacity.known(learned, 8)
    assert known.rate == pytest.approx(16.0, rel=0.06)
    assert known.low < known.rate


def test_unbounded_slots_tell_nothing():
    learned, _ = work(capacity.Learned(), random.Random(1), 300, 20.0, 0.5)

    assert capacity.known(learned, 0) is None


@pytest.mark.parametrize("factor", [1.8, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_a_drift_is_found_within_a_minute(seed, factor):
    rng = random.Random(seed)
    learned, now = work(capacity.Learned(), rng, 900, 20.0, 0.5)
    assert learned.drifted_at is None, "chance is no drift"

    # In flight climbs with the service time.
    learned, now = work(learned, rng, 60, 20.0, 0.5 * factor, now=now)
    assert learned.drifted_at is not None
    if factor > 1.0:
        assert capacity.known(learned, 8).rate == pytest.approx(16.0 / factor, rel=0.2)
    else:
        # What became faster is believed with care.
        assert 16.0 < capacity.known(learned, 8).rate <= 34.0


def test_a_service_time_that_rises_with_load_is_carried_on_to_full():
    learned, now = capacity.Learned(), 0.0
    for second in range(1200):
        now += 1.0
        full = 0.2 + 0.3 * (second % 120 < 60)
        flight = full * 32
        service = 0.4 * (1.0 + full)
        learned = capacity.observe(learned, flight / service, flight, 1.0, 4, 8, 1.0, now)

    assert capacity.known(learned, 8).rate < 8 / 0.6, "at half full it takes 0.6 s, at full 0.8 s"


def test_compute_lent_is_not_mistaken_for_speed():
    learned, now = work(capacity.Learned(), random.Random(1), 300, 20.0, 0.5)
    for _ in range(60):
        now += 1.0
        learned = capacity.observe(learned, 20, 5.0, 2.0, 4, 8, 1.0, now)

    assert capacity.known(learned, 8).rate == pytest.approx(16.0, rel=0.1)
