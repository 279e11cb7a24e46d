from __future__ import annotations

import heapq
import random

import pytest

from autoscaler import capacity, drift


class Replicas:
    """Requests of one model on `ready` replicas of 8 slots, a second at a time; what finds no slot queues."""

    def __init__(self, seed, length, ready=8):
        self.rng, self.length, self.ready = random.Random(seed), length, ready
        self.now, self.queue, self.ends = 0.0, 0, []
        self.learned = capacity.Learned()

    def run(self, seconds, rate):
        for _ in range(int(seconds)):
            done, flying = 0, 0.0
            for _ in range(20):
                self.now += 0.05
                while self.ends and self.ends[0] <= self.now:
                    heapq.heappop(self.ends)
                    done += 1
                self.queue += sum(self.rng.random() < rate / 200 for _ in range(10))
                while self.queue and len(self.ends) < 8 * self.ready:
                    self.queue -= 1
                    heapq.heappush(self.ends, self.now + self.length(self.rng))
                flying += len(self.ends) / 20
            self.learned = capacity.observe(self.learned, done, flying, 1.0, self.ready, 8, 1.0, self.now)


def exponential(mean):
    return lambda rng: rng.expovariate(1.0 / mean)


@pytest.mark.parametrize("seed", range(5))
def test_full_replicas_that_become_slower_are_found_out_within_seconds(seed):
    replicas = Replicas(seed, exponential(2.0))
    replicas.run(300, 25.0)
    assert replicas.learned.slowed_at is None, "chance is no drift"

    begun, replicas.length = replicas.now, exponential(3.6)
    replicas.run(15, 25.0)

    assert begun < replicas.learned.slowed_at <= begun + 15
    replicas.run(30, 25.0)
    assert capacity.known(replicas.learned, 8).rate == pytest.approx(8 / 3.6, rel=0.2)


@pytest.mark.parametrize("length", [lambda rng: 2.0, exponential(2.0)], ids=["constant", "exponential"])
def test_a_rate_that_doubles_and_more_replicas_that_take_up_a_queue_are_no_drift(length):
    replicas = Replicas(1, length)
    replicas.run(120, 15.0)
    replicas.run(60, 45.0)
    replicas.ready = 14
    replicas.run(60, 45.0)

    assert replicas.learned.drifted_at is None


def test_who_becomes_faster_again_is_believed():
    replicas = Replicas(1, exponential(2.0))
    replicas.run(120, 25.0)
    replicas.length = exponential(3.6)
    replicas.ready = 16
    replicas.run(120, 25.0)
    replicas.length = exponential(2.0)
    replicas.run(120, 25.0)

    assert replicas.learned.slowed_at is None
    assert capacity.known(replicas.learned, 8).rate == pytest.approx(4.0, rel=0.2)


def test_less_is_counted_on_before_it_is_certain_and_hardly_ever_for_nothing():
    wary, calm = [], 0
    for seed in range(5):
        replicas = Replicas(seed, exponential(4.0), ready=12)
        for _ in range(300):
            replicas.run(1, 15.0)
            calm += drift.may_have_slowed(replicas.learned.watch)
        before = capacity.known(replicas.learned, 8).low
        replicas.length = exponential(7.2)
        for _ in range(60):
            replicas.run(1, 15.0)
            if replicas.learned.slowed_at is not None:
                break
            wary += [capacity.known(replicas.learned, 8).low < 0.8 * before]
    assert calm <= 15, "one second of a hundred"
    assert sum(wary) >= 5, "a few seconds each time"
