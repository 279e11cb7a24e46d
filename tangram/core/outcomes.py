"""From the workers' cumulative counters to what became of the requests that were sent to each replica."""

from __future__ import annotations

from collections.abc import Collection

from gateway.wire import Report


class OutcomeTracker:
    """Totals a replica over all workers, and over all lives of each worker."""

    def __init__(self) -> None:
        self._replicas: dict[str, dict[tuple[int, str], tuple[int, int]]] = {}

    def report(self, report: Report) -> None:
        """Take one report in."""
        source = (report.worker, report.epoch)
        for model in report.models:
            for endpoint in model.endpoints:
                counted = self._replicas.setdefault(endpoint.id, {})
                counted[source] = (endpoint.requests, endpoint.failures)

    def of(self, replicas: Collection[str]) -> tuple[int, int]:
        """(requests sent, failures) of the replicas together."""
        counted = [pair for name in replicas for pair in self._replicas.get(name, {}).values()]
        return sum(requests for requests, _ in counted), sum(failures for _, failures in counted)

    def retain(self, replicas: Collection[str]) -> None:
        """Forget all others."""
        for name in [n for n in self._replicas if n not in replicas]:
            del self._replicas[name]
