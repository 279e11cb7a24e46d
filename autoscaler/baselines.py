"""What others do, from their published algorithms and defaults, as scalers for simulate.py.

hpa     Kubernetes HorizontalPodAutoscaler v2 on requests a second: every 15 s, tolerance 0.1; up at most the greater
        of 100 percent and 4 pods in 15 s, down to the greatest count wanted in the last 300 s.
kpa     Knative's autoscaler: every 2 s; a stable window of 60 s and a panic window of 6 s; panic at 200 percent, no
        fall while in panic; at most ten times the ready ones at once.
ray     Ray Serve: ongoing requests / target, kept up for 30 s before it grows and for 600 s before it shrinks.
threshold  one step up past the preset rate a replica, one down when the rest would stay below it.
fixed   always the same.

Sources: kubernetes.io "Horizontal Pod Autoscaling"; knative/serving pkg/autoscaler/scaling/autoscaler.go and
"Configuring concurrency" / "Configuring the requests per second target"; Ray Serve "Advanced autoscaling" and
serve/autoscaling_policy.py.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from autoscaler.simulate import View


@dataclass
class Hpa:
    """Kubernetes' HPA on requests per second; `target` is the rate a replica (AverageValue)."""

    target: float
    sync_s: float = 15.0
    tolerance: float = 0.1
    window_s: float = 300.0
    metric_s: float = 30.0
    """The metric is the mean rate over this time."""
    _wants: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _count: int = 0
    _next: float = 0.0

    def __call__(self, view: View) -> int:
        now, sample, supply = view.now, view.sample, view.supply
        self._count = self._count or supply.ready + supply.starting
        if sample.arrivals is not None and sample.dt:
            self._seen.append((now, float(sample.arrivals)))
        while self._seen and self._seen[0][0] <= now - self.metric_s:
            self._seen.popleft()
        if now < self._next or not self._seen:
            return self._count
        self._next = now + self.sync_s
        rate = sum(value for _, value in self._seen) / len(self._seen)
        want = self._count
        if abs(rate / (self.target * self._count) - 1.0) > self.tolerance:
            want = max(1, math.ceil(rate / self.target - 1e-9))
        self._wants.append((now, want))
        while self._wants[0][0] <= now - self.window_s:
            self._wants.popleft()
        if want < self._count:
            want = min(self._count, max(w for _, w in self._wants))
        while self._changes and self._changes[0][0] <= now - 15.0:
            self._changes.popleft()
        start = self._count - sum(change for _, change in self._changes)
        want = min(want, max(2 * start, start + 4, self._count))
        if want != self._count:
            self._changes.append((now, want - self._count))
            self._count = want
        return self._count


@dataclass
class Kpa:
    """Knative's autoscaler; `target` is requests per second, or requests in flight and queued, a replica."""

    target: float
    of: str
    """rps or concurrency"""
    tick_s: float = 2.0
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_at: float = 2.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _panic_from: float | None = None
    _panic_count: int = 0
    _count: int = 0
    _next: float = 0.0

    def __call__(self, view: View) -> int:
        now, sample, supply = view.now, view.sample, view.supply
        self._count = self._count or supply.ready + supply.starting
        if sample.arrivals is not None and sample.dt:
            both = (sample.in_flight or 0.0) + (sample.queued or 0.0)
            self._seen.append((now, float(sample.arrivals) if self.of == "rps" else both))
        while self._seen and self._seen[0][0] <= now - self.stable_s:
            self._seen.popleft()
        if now < self._next or not self._seen:
            return self._count
        self._next = now + self.tick_s
        ready = max(1, supply.ready)
        short = [v for t, v in self._seen if t > now - self.panic_s]
        stable = sum(v for _, v in self._seen) / len(self._seen)
        panic = sum(short) / len(short) if short else stable
        most = 10 * ready
        least = math.floor(ready / 2)
        want = min(max(math.ceil(stable / self.target - 1e-9), least), most)
        want_panic = min(max(math.ceil(panic / self.target - 1e-9), least), most)
        over = math.ceil(panic / self.target - 1e-9) / ready >= self.panic_at
        if over:
            if self._panic_from is None:
                self._panic_count = 0
            self._panic_from = now
        elif self._panic_from is not None and now - self._panic_from >= self.stable_s:
            self._panic_from = None
        if self._panic_from is not None:
            self._panic_count = max(self._panic_count, want_panic, ready)
            want = self._panic_count
        self._count = max(1, want)
        return self._count


@dataclass
class Ray:
    """Ray Serve; `target` is ongoing requests (in flight and queued) a replica."""

    target: float
    up_s: float = 30.0
    down_s: float = 600.0
    interval_s: float = 10.0
    look_back_s: float = 30.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _steps: int = 0
    _count: int = 0
    _next: float = 0.0

    def __call__(self, view: View) -> int:
        now, sample, supply = view.now, view.sample, view.supply
        self._count = self._count or supply.ready + supply.starting
        if sample.in_flight is not None and sample.dt:
            self._seen.append((now, sample.in_flight + (sample.queued or 0.0)))
        while self._seen and self._seen[0][0] <= now - self.look_back_s:
            self._seen.popleft()
        if now < self._next or not self._seen:
            return self._count
        self._next = now + self.interval_s
        ongoing = sum(v for _, v in self._seen) / len(self._seen)
        want = max(1, math.ceil(ongoing / self.target - 1e-9))
        if want > self._count:
            self._steps = max(0, self._steps) + 1
            if self._steps > self.up_s / self.interval_s:
                self._count, self._steps = want, 0
        elif want < self._count:
            self._steps = min(0, self._steps) - 1
            if -self._steps > self.down_s / self.interval_s:
                self._count, self._steps = want, 0
        else:
            self._steps = 0
        return self._count


@dataclass
class Threshold:
    """One replica more when the rate passes the preset of what is there, one fewer when the rest would stay below."""

    target: float
    """Requests per second a replica."""
    interval_s: float = 15.0
    window_s: float = 60.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _count: int = 0
    _next: float = 0.0

    def __call__(self, view: View) -> int:
        now, sample, supply = view.now, view.sample, view.supply
        self._count = self._count or supply.ready + supply.starting
        if sample.arrivals is not None and sample.dt:
            self._seen.append((now, sample.arrivals))
        while self._seen and self._seen[0][0] <= now - self.window_s:
            self._seen.popleft()
        if now < self._next or not self._seen:
            return self._count
        self._next = now + self.interval_s
        rate = sum(v for _, v in self._seen) / len(self._seen)
        if rate > self.target * self._count:
            self._count += 1
        elif self._count > 1 and rate < self.target * (self._count - 1):
            self._count -= 1
        return self._count


@dataclass(frozen=True)
class Fixed:
    """Always as many."""

    count: int

    def __call__(self, view: View) -> int:
        return self.count
