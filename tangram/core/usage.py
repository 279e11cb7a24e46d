"""What tenants used, from the workers' cumulative counters: totals over all workers and all their lives.

What a worker reports counts from the start of its *epoch*, so the last report of an epoch is all there is to know of
it, and taking one twice, or missing one, changes nothing. The total of a tenant is the sum over epochs. An epoch that
was not heard of for SETTLED_S is over; what it counted is then added to that of the epochs that ended before (SETTLED).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.wire import Report

#: Name for all epochs that are over.
SETTLED: Final = ""
SETTLED_S: Final = 3600.0


class Entry(NamedTuple):
    """What is counted: requests that ended with a code, request-seconds, or requests refused for a reason."""

    epoch: str
    tenant: str
    model: str
    """Empty for refusals: they are counted over all models."""
    what: str
    """A code, "seconds", or a reason."""


SECONDS: Final = "seconds"


@dataclass(slots=True)
class ModelUsage:
    """What a tenant used of one model."""

    requests: dict[int, int] = field(default_factory=dict)
    """By code."""
    seconds: float = 0.0


@dataclass(slots=True)
class TenantUsage:
    """What a tenant used in all."""

    models: dict[str, ModelUsage] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    """By reason."""


class UsageTracker:
    """All entries, in memory; `amounts` are those on record."""

    def __init__(self, amounts: Mapping[Entry, float], now: float) -> None:
        self._amounts = dict(amounts)
        self._changed: set[Entry] = set()
        self._heard = {entry.epoch: now for entry in amounts}

    def report(self, report: Report, now: float) -> None:
        """Take one report in."""
        for tenant in report.tenants:
            self._heard[report.epoch] = now
            for model, code, count in tenant.requests:
                self._set(Entry(report.epoch, tenant.name, model, str(code)), count)
            for model, seconds in tenant.seconds:
                self._set(Entry(report.epoch, tenant.name, model, SECONDS), seconds)
            for reason, count in tenant.refused:
                self._set(Entry(report.epoch, tenant.name, "", reason), count)

    def _set(self, entry: Entry, amount: float) -> None:
        if self._amounts.get(entry) != amount:
            self._amounts[entry] = amount
            self._changed.add(entry)

    def totals(self) -> dict[str, TenantUsage]:
        """By tenant, up to the last report."""
        totals: dict[str, TenantUsage] = {}
        for (_, tenant, name, what), amount in self._amounts.items():
            usage = totals.setdefault(tenant, TenantUsage())
            if not name:
                usage.refused[what] = usage.refused.get(what, 0) + int(amount)
                continue
            model = usage.models.setdefault(name, ModelUsage())
            if what == SECONDS:
                model.seconds += amount
            else:
                model.requests[int(what)] = model.requests.get(int(what), 0) + int(amount)
        return totals

    def forget(self, tenants: Iterable[str]) -> None:
        """They were deleted; whoever keeps the record does the same there."""
        gone = set(tenants)
        self._amounts = {e: a for e, a in self._amounts.items() if e.tenant not in gone}
        self._changed = {e for e in self._changed if e.tenant not in gone}

    def settle(self, live: Iterable[str], now: float) -> set[str]:
        """Add up the epochs that are over; which those are. `live` are those of workers that are there."""
        self._heard.update(dict.fromkeys(live, now))
        over = {e for e, heard in self._heard.items() if e != SETTLED and now - heard >= SETTLED_S}
        for entry in [e for e in self._amounts if e.epoch in over] if over else ():
            total = entry._replace(epoch=SETTLED)
            self._amounts[total] = self._amounts.get(total, 0.0) + self._amounts.pop(entry)
            self._changed.discard(entry)
            self._changed.add(total)
        for epoch in over:
            del self._heard[epoch]
        return over

    def changed(self) -> dict[Entry, float]:
        """What is not on record as it is."""
        return {entry: self._amounts[entry] for entry in self._changed}

    def recorded(self) -> None:
        """It is now."""
        self._changed.clear()
