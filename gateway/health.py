"""Outlier detection: which endpoints of a model get nothing new because they fail, or are much slower than the others.

A circuit an endpoint, closed until it trips:

    in service -> ejected -> on trial -> in service
                    ^___________|

*Ejected* when it failed several times in a row (refused, broken, timed out or 5xx), when its typical time to the first
byte is a multiple of that of its peers, or when it has been sent requests and has answered nothing for a multiple of
what its peers take. A request that was left to another endpoint is no failure; its time counts as far as it went. Each
ejection in a row lasts twice as long as the one before. Once its time is over an active probe must succeed; then it is
*on trial*: one request at a time until three have gone well, and the first failure ejects it again. An endpoint that
refused connections is probed from the start and comes back with the first probe that succeeds, since that is what was
wrong with it.

The floor: never more than the policy's share of a model's endpoints are ejected, and never the last one. Where errors
are everywhere the fault is likely not an endpoint's, and a bad answer is no worse than none.

What is *typical* is the median of the last few times, so that one slow answer (a first one, say) says nothing. Time
counts from when the request was sent whole: a client that uploads slowly does not make an endpoint slow.

A new endpoint may get its share bit by bit (slow start): its weight grows from a tenth to the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Final, Protocol

from gateway.wire import Health

#: Times to the first byte that are kept, and how many there must be to judge by.
SAMPLES: Final = 16
ENOUGH_SAMPLES: Final = 6
#: Slower than the peers by less than this is never slow.
SLOW_MARGIN_S: Final = 0.05
#: Silence is judged as slowness that is this many times worse, and never before STALL_MIN_S.
STALL_FACTOR: Final = 4.0
STALL_MIN_S: Final = 2.0
#: How often slowness and silence are looked for.
REVIEW_S: Final = 0.25
TRIAL_REQUESTS: Final = 3
PROBE_PERIOD_S: Final = 1.0
RAMP_FLOOR: Final = 0.1


class Reason(StrEnum):
    """Why an endpoint was ejected."""

    UNREACHABLE = "unreachable"
    ERRORS = "errors"
    SLOW = "slow"
    SILENT = "silent"


@dataclass
class Vitals:
    """What one worker has seen of one endpoint."""

    joined: float = 0.0
    """When it was new, or came back from an ejection."""
    ramp_s: float = 0.0
    errors: int = 0
    """Failures in a row."""
    unreachable: bool = False
    """Whether the last failure was a refused connection."""
    awaited: int = 0
    """Requests sent whole whose answer has not begun."""
    begun: int = 0
    """Requests in flight whose answer has begun."""
    quiet_since: float = 0.0
    """Since when nothing has come while something was awaited."""
    silence: float = 0.0
    """How long nothing had come when the last request awaited was overtaken."""
    times: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    ejected: Reason | None = None
    until: float = 0.0
    """When the ejection is over, if a probe succeeds then."""
    probe_at: float = 0.0
    probing: bool = False
    ejections: int = 0
    """In a row."""
    trial: int = 0
    """Requests that must still go well after an ejection."""

    def sent(self, now: float) -> None:
        """A request was sent whole."""
        if not self.awaited:
            self.quiet_since = now - self.silence
        self.awaited += 1

    def answering(self, seconds: float | None, now: float) -> None:
        """An answer began after so many seconds, or None: the request ended without one."""
        self.awaited -= 1
        if seconds is not None:
            self.silence = 0.0
            self.quiet_since = now
            self.times.append(seconds)

    def overtaken(self, seconds: float, now: float) -> None:
        """A request was left to another endpoint after so many seconds: it takes no less, and silence goes on."""
        self.awaited -= 1
        self.times.append(seconds)
        if not self.awaited:
            self.silence = now - self.quiet_since

    def ramp(self, now: float) -> float:
        """Share of its weight, 0.1 to 1, while it starts slowly."""
        age = now - self.joined
        return 1.0 if age >= self.ramp_s else max(RAMP_FLOOR, age / self.ramp_s)

    @property
    def typical_s(self) -> float | None:
        """Median time to the first byte; None before enough is known."""
        return median(self.times) if len(self.times) >= ENOUGH_SAMPLES else None


class Patient(Protocol):
    """An endpoint, as outlier detection needs it."""

    vitals: Vitals


class OutlierDetector:
    """Ejects endpoints of one model and takes them back."""

    def __init__(self, policy: Health) -> None:
        self.policy = policy
        self.counts: dict[Reason, int] = {}
        """Ejections so far."""
        self.out = 0
        """Endpoints that are ejected now."""
        self.next_review = 0.0
        """When slowness and silence are looked for next."""

    def failed(self, patient: Patient, peers: Sequence[Patient], now: float, *, unreachable: bool) -> bool:
        """A request failed for the endpoint's fault; whether that ejects it. `peers` are all, itself included."""
        vitals = patient.vitals
        vitals.errors += 1
        vitals.unreachable = unreachable
        tripped = self.policy.consecutive_errors and vitals.errors >= self.policy.consecutive_errors
        if vitals.ejected is not None or not (vitals.trial or tripped):
            return False
        return self._eject(vitals, peers, Reason.UNREACHABLE if unreachable else Reason.ERRORS, now)

    def succeeded(self, patient: Patient, now: float) -> None:
        """A request was answered well."""
        vitals = patient.vitals
        vitals.errors = 0
        vitals.unreachable = False
        if vitals.trial and vitals.ejected is None:
            vitals.trial -= 1
        if vitals.ejections and now - vitals.joined > self.policy.max_ejection_s:
            vitals.ejections = 0

    def review(self, peers: Sequence[Patient], now: float) -> None:
        """Look for endpoints that are slow or silent; does nothing until a quarter of a second after the last look."""
        if now < self.next_review:
            return
        self.next_review = now + REVIEW_S
        factor = self.policy.slow_factor
        if not factor or len(peers) < 2:
            return
        known = [(p.vitals, typical) for p in peers if (typical := p.vitals.typical_s) is not None]
        for vitals in [p.vitals for p in peers if p.vitals.ejected is None]:
            others = [typical for other, typical in known if other is not vitals and other.ejected is None]
            if not others:
                continue
            usual = median(others)
            own = vitals.typical_s
            if own is not None and own > factor * usual and own - usual > SLOW_MARGIN_S:
                self._eject(vitals, peers, Reason.SLOW, now)
            elif vitals.awaited and now - vitals.quiet_since > max(STALL_MIN_S, STALL_FACTOR * factor * usual):
                self._eject(vitals, peers, Reason.SILENT, now)

    def due(self, peers: Iterable[Patient], now: float) -> list[Patient]:
        """Ejected endpoints that are to be probed now; each is then taken to be, until `probed`."""
        due = [p for p in peers if p.vitals.ejected and not p.vitals.probing and p.vitals.probe_at <= now]
        for patient in due:
            patient.vitals.probing = True
        return due

    def probed(self, patient: Patient, peers: Sequence[Patient], *, well: bool, now: float) -> bool:
        """How a probe went; whether the endpoint is back."""
        vitals = patient.vitals
        vitals.probing = False
        if vitals.ejected is None or not any(p.vitals is vitals for p in peers):
            return False
        if well and (vitals.ejected is Reason.UNREACHABLE or vitals.until <= now):
            self._readmit(vitals, now, trial=TRIAL_REQUESTS)
            return True
        vitals.probe_at = max(now + PROBE_PERIOD_S, 0.0 if vitals.ejected is Reason.UNREACHABLE else vitals.until)
        return False

    def keep_floor(self, peers: Sequence[Patient], now: float) -> None:
        """After endpoints have left: take back as many as the floor wants, those first whose time is over first."""
        ejected = sorted((p.vitals for p in peers if p.vitals.ejected), key=lambda v: v.until)
        self.out = len(ejected)
        while ejected and not self._allowed(len(ejected), len(peers)):
            self._readmit(ejected.pop(0), now, trial=0)

    def _allowed(self, ejected: int, total: int) -> bool:
        return ejected < total and ejected * 100 <= self.policy.max_ejected_percent * total

    def _eject(self, vitals: Vitals, peers: Sequence[Patient], reason: Reason, now: float) -> bool:
        if not self._allowed(self.out + 1, len(peers)):
            return False
        self.out += 1
        vitals.ejections += 1
        seconds = min(self.policy.max_ejection_s, self.policy.ejection_s * 2.0 ** min(vitals.ejections - 1, 32))
        vitals.ejected = reason
        vitals.until = now + seconds
        vitals.probe_at = now + min(seconds, PROBE_PERIOD_S) if reason is Reason.UNREACHABLE else vitals.until
        self.counts[reason] = self.counts.get(reason, 0) + 1
        return True

    def _readmit(self, vitals: Vitals, now: float, *, trial: int) -> None:
        self.out -= 1
        vitals.ejected = None
        vitals.errors = 0
        vitals.trial = trial
        vitals.joined = vitals.quiet_since = now
        vitals.silence = 0.0
        vitals.ramp_s = self.policy.slow_start_s
        vitals.times.clear()
