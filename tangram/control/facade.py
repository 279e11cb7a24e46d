"""What the REST API may ask of the controller: the seam between `api` and `loop`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tangram.control.views import (
    ApplyView,
    DecisionView,
    DescribeView,
    DeviceView,
    EventView,
    ExplainView,
    ModelView,
    ReplicaView,
    ScaleRequest,
    StatusView,
)
from tangram.spec import Model


class NotFound(LookupError):
    """No such model or replica; the text names it and what there is."""


class NotRecorded(Exception):
    """A change that could not be written to the store; the text says why. Nothing was changed."""


class Facade(Protocol):
    """Reads answer from memory or the store at once; writes return once recorded, not once carried out.

    Writes raise NotRecorded where the store fails.
    """

    def status(self) -> StatusView:
        """Of the whole installation."""

    def models(self) -> Sequence[ModelView]:
        """By name."""

    def model(self, name: str) -> ModelView:
        """Raises NotFound."""

    def specs(self) -> Sequence[Model]:
        """Specs in force, by name."""

    def describe(self, name: str) -> DescribeView:
        """Raises NotFound."""

    def explain(self, name: str) -> ExplainView:
        """Raises NotFound."""

    def replicas(self, model: str | None = None) -> Sequence[ReplicaView]:
        """By name; of one model or of all. NotFound for an unknown model."""

    def devices(self) -> Sequence[DeviceView]:
        """By id."""

    def decisions(self, model: str | None = None, limit: int = 50) -> Sequence[DecisionView]:
        """Newest first. NotFound for a model never heard of."""

    def events(self, model: str | None = None, limit: int = 50) -> Sequence[EventView]:
        """Newest first."""

    def log_path(self, replica: str) -> Path:
        """Current log file of a replica, also of one that is gone while its log is kept. Raises NotFound."""

    async def apply(self, documents: Sequence[dict[str, object]], *, dry_run: bool = False) -> ApplyView:
        """Take all documents or none; SpecError says why not."""

    async def scale(self, name: str, request: ScaleRequest) -> ModelView:
        """Change scaling fields of a spec; SpecError where the result would not be valid, NotFound."""

    async def delete(self, name: str) -> None:
        """Remove a model; its replicas are drained. Raises NotFound."""

    def worker_metrics_urls(self) -> Sequence[tuple[int, str]]:
        """(worker index, URL of its /metrics) of each connected gateway worker."""

    def controller_metrics(self) -> Sequence[ModelMetrics]:
        """What the controller exports, per model."""


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Figures of one model for the controller's collector."""

    name: str
    desired: int
    ready: int
    starting: int
    signals: tuple[tuple[str, int], ...]
    """(signal name, replicas wanted by it)."""
