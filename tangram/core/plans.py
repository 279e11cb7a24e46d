"""The planner's nouns: what it is shown, what is wanted, and the actions it answers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoscaler.quota import Claim
from packer.inventory import MigInstance, NoFit, Placement
from packer.mix import Mix
from tangram.core.replica import Phase, Replica
from tangram.spec import Model


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process for the replica: a new one, or a crashed one again. One that `replaces` another is a move."""

    replica: Replica
    why: str
    again: bool = False

    @property
    def moves(self) -> bool:
        """Whether it begins a move."""
        return bool(self.replica.replaces) and not self.again


@dataclass(frozen=True, slots=True)
class Drain:
    """Send nothing new to the replica; stop it when nothing is in flight."""

    replica: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Undrain:
    """Let a draining replica take requests again."""

    replica: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the replica's process."""

    replica: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Let a running replica have more of its device's compute for the time being, or no more."""

    replica: str
    model: str
    loan: int
    """Percent beyond its slice."""
    why: str


@dataclass(frozen=True, slots=True)
class Repartition:
    """Give a MIG device this layout; instances of it that are there stay as they are."""

    device: str
    layout: tuple[MigInstance, ...]
    """All that is in use, and what the start that follows needs."""
    model: str
    """On whose behalf."""
    why: str


Action = Start | Drain | Undrain | Stop | Resize | Repartition


@dataclass(frozen=True, slots=True)
class Attempts:
    """What failed starts have taught of a model."""

    failed: int = 0
    """Starts in a row that passed their progress deadline."""
    failed_at: float = 0.0
    retry_at: float = 0.0
    avoid: Mapping[str, float] = field(default_factory=dict)
    """Device id -> until when it is avoided."""
    searched: int = 0
    """Fleet and what lay where, as a hash, when moves were last searched for in vain: that need not be repeated."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The world as last seen."""

    replicas: tuple[Replica, ...]
    drained: frozenset[str] = frozenset()
    """Draining replicas for which every gateway worker has confirmed that nothing is in flight."""
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    next_ordinal: Mapping[str, int] = field(default_factory=dict)
    """Model -> number in the name of its next replica; never given twice."""
    moves_lately: int = 0
    """Moves begun in the last hour."""
    mix: Mix | None = None
    """The demand to expect, by which places are chosen."""
    division: Division | None = None
    """How the fleet was divided last; None while it holds all that is wanted."""
    tidy: bool = False
    """Whether it is time to look for moves that leave more useful room."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a model was granted of a fleet that cannot hold all that is wanted."""

    wanted: int
    granted: int
    value: float = 0.0
    """Late requests per second that one more replica would spare."""
    keep: frozenset[str] = frozenset()
    """Its replicas that stay, or come back from draining."""
    places: tuple[Placement, ...] = ()
    """Where new ones may go, once those that leave have gone."""

    def __str__(self) -> str:
        text = f"granted {self.granted} of {self.wanted} wanted: the fleet cannot hold what all models want"
        if self.granted >= self.wanted:
            return text
        return f"{text}; one more would spare about {self.value:.3g} late requests/s"


@dataclass(frozen=True, slots=True)
class Division:
    """How a fleet that cannot hold all that is wanted was divided, and on what claims."""

    claims: Mapping[str, Claim]
    shares: Mapping[str, Share]
    made_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Desired:
    """What one model should have; a model that is not desired is removed."""

    model: Model
    count: int
    because: str = ""
    """What decided the count, for the actions' reasons."""
    canary: int = 0
    """Replicas of `model`'s revision while `stable` holds the count; 0: no canary is held."""
    stable: Model | None = None
    """The model as it was before, while a canary is held."""
    boost: float = 1.0
    """How many times its slice's compute each ready replica should have, until more are ready."""
    claim: Claim | None = None
    """What it asks of a fleet that cannot hold all; None: it gets what is free when its turn comes, by priority."""
    dealt: Share | None = None
    """What a division of the full fleet says of it."""

    def limited(self, share: Share) -> Desired:
        """With what was granted in place of what is wanted."""
        because = f"its share of a full fleet, {self.wanted}" if share.granted < share.wanted else self.because
        return replace(self, count=share.granted, because=because, dealt=share)

    @property
    def wanted(self) -> str:
        """The count in words."""
        return f"{self.count} wanted" + (f" ({self.because})" if self.because else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered actions, and what could not be done."""

    actions: tuple[Action, ...] = ()
    refusals: Mapping[str, tuple[NoFit, ...]] = field(default_factory=dict)
    """Model -> replicas that were wanted and found no place."""
    waiting: Mapping[str, str] = field(default_factory=dict)
    """Model -> why nothing is started at present though more is wanted."""
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """Changed entries only."""
    division: Division | None = None
    """Who was granted what; None while the fleet holds all that is wanted."""

    def shortage(self, model: str) -> Share | None:
        """The model's share of a full fleet, where that is less than it wants."""
        share = self.division.shares.get(model) if self.division else None
        return share if share and share.granted < share.wanted else None


def apply(replicas: Sequence[Replica], actions: Sequence[Action], now: float) -> tuple[Replica, ...]:
    """The replicas as they are recorded once the actions are."""
    table = {r.name: r for r in replicas}
    for action in actions:
        match action:
            case Start(replica=started):
                table[started.name] = started
            case Drain(replica=name, why=why):
                table[name] = replace(table[name], phase=Phase.DRAINING, since=now, message=why)
            case Undrain(replica=name):
                table[name] = replace(table[name], phase=Phase.READY, since=now, message="")
            case Stop(replica=name, why=why):
                table[name] = replace(table[name], phase=Phase.STOPPING, since=now, message=why)
            case Resize(replica=name, loan=loan):
                table[name] = replace(table[name], loan=loan)
    return tuple(table.values())
