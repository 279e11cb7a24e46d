"""What the controller holds in memory: specs, replicas, and what it has learned and decided of each model."""

from __future__ import annotations

import itertools
import zlib
from collections import UserDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from autoscaler.policy import State as PolicyState
from autoscaler.types import Recommendation, ScalingPolicy
from packer.inventory import Device, Inventory
from tangram.core import convert
from tangram.core.decision import Decision
from tangram.core.demand import DemandTracker
from tangram.core.outcomes import OutcomeTracker
from tangram.core.plans import Attempts, Division
from tangram.core.replica import Phase, Replica
from tangram.core.rollout import Rollout
from tangram.node.backend import InstanceStatus
from tangram.spec import Fleet, Model


@dataclass(slots=True)
class ModelState:
    """One model in force."""

    model: Model
    created_at: float
    policy_state: PolicyState
    recommendation: Recommendation | None = None
    wanted: int | None = None
    """The count that is acted on: the recommended one, or in advisory mode what it was before; None at first."""
    latest: Decision | None = None
    """Of the last turn of the loop, eventful or not."""
    recorded: tuple[int, tuple[str, ...]] | None = None
    """Count wanted and refusals of the decision recorded last."""
    attempts: Attempts = field(default_factory=Attempts)
    suffered: float = 0.0
    """Share of the replicas wanted that a full fleet refused of late (autoscaler.quota.SUFFER_S)."""
    start_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    """Seconds to ready of the last starts."""
    woken: bool = False
    """Whether a request waits and no replica is there."""
    slot: int | None = None
    """Column of its waiting rooms in the memory that gateway workers share; the loop gives it one."""
    changed: bool = False
    """Whether the spec was changed since the last recommendation."""
    rollout: Rollout | None = None
    """The last one, also once it has ended."""
    revisions: dict[str, Model] = field(default_factory=dict)
    """Documents of the revisions on record."""
    _asked: tuple[Model, bool, float, ScalingPolicy] | None = None
    """What `policy` said last, and of what."""

    def policy(self, *, advise: bool, most_boost: float) -> ScalingPolicy:
        """What the autoscaler is asked, as `convert.scaling_policy` says; the same while nothing has changed."""
        if self._asked is None or self._asked[0] is not self.model or self._asked[1:3] != (advise, most_boost):
            asked = convert.scaling_policy(self.model, advise=advise, most_boost=most_boost)
            self._asked = self.model, advise, most_boost, asked
        return self._asked[3]

    def take(self, recommendation: Recommendation, live: int) -> None:
        """Take up what is recommended; in advisory mode the count stays, within what the model itself says."""
        self.recommendation = recommendation
        if not recommendation.advisory:
            self.wanted = recommendation.replicas
            return
        scaling = self.model.spec.scaling
        before = live if self.wanted is None else self.wanted
        self.wanted = min(max(before, scaling.min_replicas), scaling.max_replicas)

    def document(self, revision: str) -> Model:
        """The model as it was at a revision; as it is where that is not known."""
        return self.model if revision == self.model.revision else self.revisions.get(revision, self.model)

    @property
    def expected_start_s(self) -> float | None:
        """Median of the last times to ready; None before the first."""
        times = sorted(self.start_times_s)
        return times[len(times) // 2] if times else None


@dataclass(frozen=True, slots=True)
class Answer:
    """Prometheus' answer to a query."""

    value: float | None
    """The last that it gave; None before the first."""
    at: float
    """When that was, on the monotonic clock."""
    error: str = ""
    """Why there is none that is newer."""


class Replicas(UserDict[str, Replica]):
    """Replicas by name, and those of each model: what is asked of every model each second must not look at all."""

    def __init__(self, replicas: Mapping[str, Replica] = MappingProxyType({})) -> None:
        self._by_model: dict[str, dict[str, Replica]] = {}
        super().__init__(replicas)

    def __setitem__(self, name: str, replica: Replica) -> None:
        if (former := self.data.get(name)) is not None:
            del self._by_model[former.model][name]
        self.data[name] = replica
        self._by_model.setdefault(replica.model, {})[name] = replica

    def __delitem__(self, name: str) -> None:
        del self._by_model[self.data.pop(name).model][name]

    def of_model(self, model: str) -> Iterable[Replica]:
        """In no order."""
        return self._by_model.get(model, {}).values()


@dataclass(slots=True)
class ControllerState:
    """All of it. `replicas` holds what is on record; `statuses` what the node last saw."""

    inventory: Inventory
    fleet: Fleet | None
    demand: DemandTracker
    models: dict[str, ModelState] = field(default_factory=dict)
    replicas: Replicas = field(default_factory=Replicas)
    statuses: Mapping[str, InstanceStatus] = field(default_factory=dict)
    ordinals: dict[str, int] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    """By query: what Prometheus said last."""
    advise: bool = False
    """Whether the whole fleet is in advisory mode."""
    oversold: tuple[str, ...] = ()
    outcomes: OutcomeTracker = field(default_factory=OutcomeTracker)
    division: Division | None = None
    """Of a fleet that cannot hold all that is wanted."""
    moves: deque[float] = field(default_factory=deque)
    """When the moves of the last hour began."""
    _known: tuple[Inventory, Mapping[str, Device]] | None = field(default=None, init=False, repr=False)

    @property
    def devices(self) -> Mapping[str, Device]:
        """Of the inventory, by id."""
        if self._known is None or self._known[0] is not self.inventory:
            self._known = self.inventory, {d.id: d for d in self.inventory.devices}
        return self._known[1]

    def devices_of(self, replica: Replica) -> tuple[Device, ...] | None:
        """The devices that the replica lies on, in its order; None where one of them is not there."""
        found = convert.devices_of(replica.placement, self.devices)
        return found if len(found) == len(replica.placement.all_devices) else None

    def of_model(self, name: str) -> list[Replica]:
        """Replicas of a model, by name."""
        return sorted(self.replicas.of_model(name), key=natural)

    def give_slots(self) -> None:
        """Every model gets a column for its waiting rooms, and keeps it."""
        slots = free_slots(m.slot for m in self.models.values() if m.slot is not None)
        for entry in self.models.values():
            if entry.slot is None:
                entry.slot = next(slots)

    def count(self, name: str, *phases: Phase) -> int:
        """Replicas of a model in any of the phases."""
        return sum(r.phase in phases for r in self.replicas.of_model(name))


def fresh_policy_state(model: str, monotonic: float) -> PolicyState:
    """Nothing seen of the model yet; forecasts of many models are spread over their period by name."""
    return PolicyState.initial(monotonic, phase=zlib.crc32(model.encode()) / 2**32)


def natural(replica: Replica) -> tuple[str, int]:
    """Sort key that puts digits-2 before digits-10."""
    _, _, number = replica.name.rpartition("-")
    return replica.model, int(number) if number.isdigit() else 0


def free_slots(taken: Iterable[int]) -> Iterator[int]:
    """Columns of the workers' shared memory that nobody holds, lowest first."""
    held = set(taken)
    return (slot for slot in itertools.count() if slot not in held)
