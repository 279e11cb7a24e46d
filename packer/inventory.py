"""The packer's nouns: what there is (Node, Device), what is asked (SliceRequest), what is given (Placement, NoFit).

All quantities are integers: MiB of memory, percent of a device's compute (0 to 100), thousandths of a CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_NO_LINKS: Mapping[str, int] = MappingProxyType({})


class Distance(IntEnum):
    """How far apart two Devices of a Node are over PCIe: the words of `nvidia-smi topo -m`, the numbers of NVML."""

    BOARD = 0
    """Both on one board."""
    PIX = 10
    """One PCIe switch between them."""
    PXB = 20
    """Several PCIe switches, and no host bridge."""
    PHB = 30
    """A PCIe host bridge, which mostly is the CPU."""
    NODE = 40
    """Host bridges of one NUMA node."""
    SYS = 50
    """The interconnect between NUMA nodes."""


_NO_DISTANCES: Mapping[str, Distance] = MappingProxyType({})


def _no_labels() -> Mapping[str, str]:
    # A factory, since a mappingproxy is unhashable before Python 3.12 and dataclasses refuse it as a default.
    return _NO_LABELS


def _no_links() -> Mapping[str, int]:
    return _NO_LINKS


def _no_distances() -> Mapping[str, Distance]:
    return _NO_DISTANCES


@dataclass(frozen=True, slots=True)
class Node:
    """A machine. Host quantities that are None are unbounded."""

    name: str
    cpu_milli: int | None = None
    memory_mib: int | None = None
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    schedulable: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU (or its stand-in) of a Node."""

    id: str
    """Unique in the fleet, for example "node-a/gpu-0" or an NVML uuid."""
    node: str
    model: str
    memory_mib: int
    """As the driver reports it; usable is this less the reserve."""
    reserve_mib: int = 0
    compute: int = 100
    max_clients: int = 48
    mechanisms: frozenset[str] = frozenset({"virtual"})
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    healthy: bool = True
    links: Mapping[str, int] = field(default_factory=_no_links)
    """By the id of another Device of the Node: how strong the direct link is (number of NVLinks); PCIe alone is 0."""
    distances: Mapping[str, Distance] = field(default_factory=_no_distances)
    """By the id of another Device of the Node; one that is absent is not known and counts as SYS."""

    @property
    def usable_mib(self) -> int:
        """MiB that may be guaranteed to Instances."""
        return self.memory_mib - self.reserve_mib


@dataclass(frozen=True, slots=True)
class SliceRequest:
    """A Slice wanted for one Instance."""

    id: str
    """Name of the Instance; unique."""
    group: str
    """What to spread: the Model's name."""
    memory_mib: int
    """Guaranteed; at least 1."""
    memory_limit_mib: int | None = None
    """May grow to this; the guarantee where None."""
    compute: int = 0
    """Percent; 0 is best effort."""
    mechanism: str = "virtual"
    cpu_milli: int = 0
    host_memory_mib: int = 0
    device_models: frozenset[str] = frozenset()
    """Device models allowed; empty is any."""
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    """Labels that the Device or its Node must carry."""
    avoid: frozenset[str] = frozenset()
    """Device ids to use only where nothing else fits (a start there failed lately)."""
    devices: int = 1
    """Slices alike, each on a Device of its own, all on one Node."""
    whole: bool = False
    """Of several Devices: they are taken whole. The Instance has all the usable memory of each, which is `memory_mib`
    at least, all their compute, and nobody beside it."""

    @property
    def limit_mib(self) -> int:
        """MiB the Instance may grow to."""
        return self.memory_mib if self.memory_limit_mib is None else self.memory_limit_mib

    def takes_mib(self, device: Device) -> int:
        """MiB that the Instance is guaranteed on a Device of its own."""
        return max(device.usable_mib, self.memory_mib) if self.whole else self.memory_mib


@dataclass(frozen=True, slots=True)
class Alternative:
    """A Device that was weighed and not taken."""

    device: str
    score: float
    """Higher is better, comparable within one placement."""
    why: str


@dataclass(frozen=True, slots=True, order=True)
class MigInstance:
    """A MIG profile at the memory slot where it starts, such as "3g.40gb" at 4."""

    start: int
    profile: str


@dataclass(frozen=True, slots=True)
class Placement:
    """A Slice of one Device, given to one Instance."""

    request: SliceRequest
    device: str
    node: str
    score: float = 0.0
    why: str = ""
    """In words: why this Device."""
    alternatives: tuple[Alternative, ...] = ()
    more_devices: tuple[str, ...] = ()
    """Further Devices of the Node, for a request that needs several."""
    mig: tuple[MigInstance, ...] = ()
    """For the mechanism "mig": the GPU instance on each of `all_devices`, in that order; the slots must be empty."""

    @property
    def all_devices(self) -> tuple[str, ...]:
        """Every Device that holds one of its slices."""
        return (self.device, *self.more_devices)


@dataclass(frozen=True, slots=True)
class Move:
    """An Instance goes to another Device, make-before-break: its sibling starts at `target`, then `source` is freed."""

    source: Placement
    target: Placement

    @property
    def instance(self) -> str:
        """Who moves."""
        return self.source.request.id


@dataclass(frozen=True, slots=True)
class MovePlan:
    """Moves in the order in which each fits, and where the request goes after the last of them."""

    moves: tuple[Move, ...]
    placement: Placement


@dataclass(frozen=True, slots=True)
class ClassRefusal:
    """Why no Device of one class (same model and capacity) can take the Slice; re-checkable from the inventory."""

    device_class: str
    devices: int
    reason: str
    """One of: model, label, mechanism, memory, compute, clients, host-cpu, host-memory, slots, occupied, devices,
    unhealthy, too-large, too-many, mixed."""
    missing_mib: int = 0
    """Smallest shortfall of free memory over the class."""
    missing_compute: int = 0
    """Smallest shortfall of free compute over the class, in percent."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class NoFit:
    """No Device can take the Slice now."""

    request: SliceRequest
    refusals: tuple[ClassRefusal, ...]

    @property
    def permanent(self) -> bool:
        """Whether no Device could take it even if empty."""
        return all(r.reason in ("model", "label", "mechanism", "too-large", "too-many") for r in self.refusals)

    def __str__(self) -> str:
        return "; ".join(r.text for r in self.refusals) or "the fleet has no devices"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All Nodes and Devices, and the Slices that are taken (by running, starting and reserved Instances alike)."""

    nodes: tuple[Node, ...]
    devices: tuple[Device, ...]
    placements: tuple[Placement, ...] = ()
