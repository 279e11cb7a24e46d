"""The indexed engine: fleets of thousands of nodes as arrays; the best node for a shape in some 0.1 ms.

An `Engine` holds what is free (host CPU, host memory, compute and memory of every device) in numpy arrays. For every
shape that was ever asked it keeps a *column*: the cost of placing the shape on each node, and on which device. A
change touches one node, so that a column asked again recomputes only the nodes that changed since it was last asked
(found in a log of changes), and then takes the least cost. What the cost is, is the policy's business (`Policy`).

Equal costs are settled by a signature of what a node is and holds, in which no node's name or number occurs: the sum of
hashes of the keys of what lies there, on top of a hash of its capacity. Mirror images (empty nodes alike) are the only
nodes with equal signatures, and whichever of those is taken, the outcome is the same but for names.

A device's *level* is the percent of it that can still be given: the lesser of its free compute and its free memory. A
shape's *size* on a kind of device is the greater of its two shares. Fits are checked on the exact integers; levels and
sizes only feed the measures of usefulness.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from packer.mix import Shape
from packer.signatures import MASK, canonical, mix64, stable

Array = NDArray[Any]

UNBOUNDED: Final = 1 << 50
"""Stands for a host quantity without bound, and for the memory of a device whose memory does not matter."""
MANY_CORES: Final = 1_000_000
"""Thousandths of a core above which more make no node emptier."""
_KEY_SHIFT: Final = 55
_LOW: Final = (1 << 44) - 1
_AT_ONCE: Final = 64
"""Nodes costed for one request."""
_LOGGED: Final = _AT_ONCE
"""Changes that are kept one by one; whoever is further behind looks at all nodes."""
_LOOK_AGAIN: Final = 24
"""Nodes costed anew for one request after prices have changed."""


@dataclass(frozen=True, slots=True)
class Bay:
    """One device of a `Rack`, as the engine sees it."""

    model: str
    memory_mib: int = UNBOUNDED
    """Usable."""
    compute: int = 100
    max_clients: int = 1 << 20
    labels: frozenset[tuple[str, str]] = frozenset()
    """Its own and its node's."""
    mechanisms: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rack:
    """One node, as the engine sees it: no name."""

    cpu_milli: int
    host_memory_mib: int
    bays: tuple[Bay, ...]
    links: str = ""
    """How its devices are linked: a text that nodes linked alike share."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where something lies: a node and the devices used there (none where the host alone was asked)."""

    node: int
    devices: tuple[int, ...]


class Column:
    """The cost of one shape on every node."""

    __slots__ = (
        "allowed",
        "any_device",
        "asked",
        "cost",
        "dated",
        "device",
        "index",
        "old",
        "open",
        "pending",
        "priced",
        "shape",
        "size",
        "stamp",
        "unknown",
    )

    def __init__(self, index: int, shape: Shape, allowed: Array, size: Array, any_device: bool) -> None:
        self.index = index
        self.shape = shape
        self.allowed = allowed
        """bool[N, D]: the device is of an allowed model, carries the labels and offers the mechanism."""
        self.size = size
        """int16[N, D]: percent of the device that the shape takes."""
        self.asked = np.array([[shape.cpu_milli], [shape.host_memory_mib], [shape.compute if shape.devices else -1]])
        """Of the host's CPU and memory, and of one device's compute; -1 is less than any device has."""
        self.any_device = any_device
        """Whether every device is allowed."""
        self.cost = np.full(len(allowed), np.inf)
        self.device = np.zeros(len(allowed), np.int8)
        self.open: Array = np.asarray(allowed.any(1)) if shape.devices else np.ones(len(allowed), bool)
        self.stamp = -1
        self.unknown = np.zeros(len(allowed), bool)
        """Nodes that changed and were not costed since; never taken while another node is."""
        self.pending = False
        self.priced = 0
        self.old = np.zeros(len(allowed), bool)
        """Nodes costed at prices that have changed since."""
        self.dated = False


class Policy(Protocol):
    """What makes one node better than another."""

    by_name: bool
    """Ties go to the lowest node number (as published baselines do), not to the least signature."""

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        """Cost (float64[n]) and device (int[n]) for nodes (int[n]) that fit; fits (bool[n, D]) says which devices do.

        The device is only read where the shape asks for one device; lower cost is better.
        """
        ...


class Engine:
    """Free amounts of a fleet, and where each shape would best go."""

    def __init__(self, racks: Sequence[Rack], policy: Policy) -> None:
        count, width = len(racks), max((len(r.bays) for r in racks), default=1) or 1
        self.policy = policy
        self.racks = tuple(racks)
        self._limits = np.zeros((3, count), np.int64)
        """CPU and memory of the host, compute of the emptiest device: what a request must fit in, whatever else."""
        self.host = self._limits[:2]
        self.host[:] = [r.cpu_milli for r in racks], [r.host_memory_mib for r in racks]
        self.cpu, self.ram, self._most_spare = self._limits
        self.compute = np.zeros((count, width), np.int16)
        self.memory = np.zeros((count, width), np.int64)
        self.clients = np.zeros((count, width), np.int32)
        self.whole = np.zeros((count, width), np.int16)
        """Level of the device when empty: 100, or less where it may give less compute; 0 where there is none."""
        self.usable = np.zeros((count, width), np.int64)
        self.cpu_total, self.ram_total = self.cpu.copy(), self.ram.copy()
        kinds: dict[Bay, int] = {}
        self.kind = np.full((count, width), -1, np.int32)
        for n, rack in enumerate(racks):
            for d, bay in enumerate(rack.bays):
                self.kind[n, d] = kinds.setdefault(bay, len(kinds))
                self.compute[n, d] = self.whole[n, d] = min(bay.compute, 100)
                self.memory[n, d] = self.usable[n, d] = bay.memory_mib
                self.clients[n, d] = bay.max_clients
        self.kinds = tuple(kinds)
        self.level = self.whole.copy()
        self.free = self.level.sum(1, dtype=np.int64)
        """Levels of a node in sum."""
        self.open = self.free + np.minimum(self.cpu, MANY_CORES) / 1000
        """That, and the cores of the host as if each were a percent."""
        self.prices = 0
        self.sig = np.array([stable(canonical(r)) for r in racks], np.int64)
        self.device_sig = np.zeros((count, width), np.int64)
        self.state = np.where(self.kind < 0, len(kinds), self.kind).astype(np.int64) * 101 + self.level
        """Kind and level of each device as one number: kind * 101 + level; for no device the kind after the last."""
        self.device_key = self.level.astype(np.int64) << _KEY_SHIFT
        """Orders the devices of a node: by level, then by signature."""
        self._spare = np.where((self.clients > 0) & (self.kind >= 0), self.compute, -1).astype(np.int16)
        """Compute of devices that take another client; -1 for the others."""
        self._most_spare[:] = self._spare.max(1)
        self.bound = np.zeros((count, width), np.int16)
        """Mechanism that a device is bound to while in use, by number; 0 for none."""
        self._users: dict[tuple[int, int], int] = {}
        self._mechanisms: dict[str, int] = {}
        self.columns: list[Column] = []
        self._known: dict[Shape, int] = {}
        self.version = 0
        """Grows by one with every change."""
        self.touched = np.zeros(count, np.int64)
        """Version at which each node last changed."""
        self._log = np.zeros(2 * _LOGGED, np.int64)
        """The nodes of the latest changes, twice, so that any of them that follow each other lie side by side."""
        self.fresh: set[int] = set()
        """Nodes that changed since the policy last worked out what they are worth; the policy empties it."""

    # --- shapes ---

    def column(self, shape: Shape) -> Column:
        """The shape's column, made on first use."""
        index = self._known.get(shape)
        if index is None:
            index = self._known[shape] = len(self.columns)
            takes = np.array([*(accepts(kind, shape) for kind in self.kinds), False])
            sizes = np.array([*(share(kind, shape) for kind in self.kinds), 0], np.int16)
            self.columns.append(Column(index, shape, takes[self.kind], sizes[self.kind], bool(takes[:-1].all())))
        return self.columns[index]

    def forget_costs(self) -> None:
        """Every shape is costed anew when it is asked for next."""
        for column in self.columns:
            column.stamp, column.priced = -1, self.prices
            column.pending = column.dated = False
            column.unknown[:] = False
            column.old[:] = False

    def fits(self, column: Column, nodes: Array) -> tuple[Array, Array]:
        """(which of the nodes fit: int[m], which devices of those do: bool[m, D])."""
        shape = column.shape
        # Most nodes fail here already.
        nodes = nodes[np.logical_and.reduce(self._limits.take(nodes, 1) >= column.asked)]
        if not shape.devices:
            return nodes, np.zeros((len(nodes), self.level.shape[1]), bool)
        devices = self._spare.take(nodes, 0) >= shape.compute
        sure = shape.devices == 1
        if not column.any_device:
            devices &= column.allowed.take(nodes, 0)
            sure = False
        if shape.memory_mib:
            devices &= self.memory.take(nodes, 0) >= shape.memory_mib
            sure = False
        if shape.whole:
            devices &= self.memory.take(nodes, 0) == self.usable.take(nodes, 0)
            sure = False
        if shape.mechanism and len(self._mechanisms) > (shape.mechanism in self._mechanisms):
            bound = self.bound.take(nodes, 0)
            devices &= (bound == 0) | (bound == self._number(shape.mechanism))
            sure = False
        if sure:
            return nodes, devices
        enough = devices.any(1) if shape.devices == 1 else devices.sum(1) >= shape.devices
        return nodes[enough], devices[enough]

    def _number(self, mechanism: str) -> int:
        return self._mechanisms.setdefault(mechanism, len(self._mechanisms) + 1)

    def changed(self, since: int) -> Array:
        """Nodes that changed since a version (all for a negative one); after few changes some may come twice."""
        count = self.version - since
        if since < 0 or count > _LOGGED:
            return (self.touched > since).nonzero()[0]
        end = self.version % _LOGGED + _LOGGED + 1
        return self._log[end - count : end].copy()

    # --- placing ---

    def best(self, shape: Shape, shut: Collection[int] = ()) -> Spot | None:
        """Where the shape goes by the policy; None where it fits nowhere. Nodes that are shut take nothing."""
        column = self.refresh(shape)
        cost = column.cost
        if shut:
            cost = cost.copy()
            cost[list(shut)] = np.inf
        node = int(cost.argmin())
        least = cost[node]
        if least == np.inf:
            return None
        if not self.policy.by_name:
            tied = (cost == least).nonzero()[0]
            if len(tied) > 1:
                node = int(tied[self.sig[tied].argmin()])
        return Spot(node, self.devices_for(column, node))

    def best_of(self, shape: Shape, nodes: Array) -> int:
        """The best by the policy of these nodes, on all of which the shape fits."""
        column = self.refresh(shape)
        unsure = nodes[column.unknown[nodes] | column.old[nodes]]
        if len(unsure) > _AT_ONCE:
            unsure = unsure[np.lexsort((self.sig[unsure], self.free[unsure]))[:_AT_ONCE]]
        fit, devices = self.fits(column, unsure)
        self._evaluate(column, fit, devices)
        column.unknown[fit] = False
        return int(nodes[np.lexsort((self.sig[nodes], column.cost[nodes]))[0]])

    def refresh(self, shape: Shape) -> Column:
        """The shape's column, brought up to date: exact in what fits, and in the costs of all that may be best."""
        column = self.column(shape)
        first = column.stamp < 0
        if column.stamp < self.version or first:
            nodes = self.changed(column.stamp)
            column.stamp = self.version
            column.cost[nodes] = np.inf
            if column.pending:
                column.unknown[nodes] = True
                nodes = column.unknown.nonzero()[0]
        elif column.pending:
            nodes = column.unknown.nonzero()[0]
        else:
            nodes = None
        if nodes is not None:
            fit, devices = self.fits(column, nodes)
            if len(fit) > _AT_ONCE and not first and not self.policy.by_name:
                # The fullest first: they are what policies prefer; the rest have their turn at the next requests.
                order = ((self.free[fit] << 44) | (self.sig[fit] & _LOW)).argpartition(_AT_ONCE)[:_AT_ONCE]
                if column.pending:
                    column.unknown[nodes] = False
                column.pending = True
                column.unknown[fit] = True
                fit, devices = fit[order], devices[order]
                column.unknown[fit] = False
            elif column.pending:
                column.unknown[nodes] = False
                column.pending = False
            self._evaluate(column, fit, devices)
        if column.priced < self.prices:
            column.priced = self.prices
            column.old[:] = True
            column.dated = True
        while column.dated:
            # Costs at old prices say which nodes to look at again: the least, until the least is up to date.
            best = int(column.cost.argmin())
            if not column.old[best] or column.cost[best] == np.inf:
                break
            nodes = (column.old & (column.cost < np.inf)).nonzero()[0]
            if len(nodes) > _LOOK_AGAIN:
                cost = column.cost[nodes]
                nodes = nodes[cost <= np.partition(cost, _LOOK_AGAIN)[_LOOK_AGAIN]]
                nodes = nodes[np.lexsort((self.sig[nodes], column.cost[nodes]))[:_LOOK_AGAIN]]
            self._evaluate(column, *self.fits(column, nodes))
        return column

    def spot_on(self, shape: Shape, node: int) -> Spot | None:
        """Where on this node the shape goes; None where it does not fit there."""
        column = self.refresh(shape)
        nodes, devices = self.fits(column, np.array([node]))
        if not len(nodes):
            return None
        self._evaluate(column, nodes, devices)
        column.unknown[node] = False
        return Spot(node, self.devices_for(column, node))

    def weigh(self, shape: Shape, node: int, devices: Collection[int]) -> tuple[float, Spot]:
        """(cost, spot) of the best of these devices of the node, on all of which the shape fits."""
        column = self.refresh(shape)
        able = np.zeros((1, self.level.shape[1]), bool)
        able[0, list(devices)] = True
        cost, device = self.policy.evaluate(self, column, np.array([node]), able)
        if shape.devices > 1:
            return float(cost[0]), Spot(node, self._fullest(shape, node, able[0]))
        return float(cost[0]), Spot(node, (int(device[0]),) if shape.devices else ())

    def _evaluate(self, column: Column, nodes: Array, devices: Array) -> None:
        if len(nodes):
            if column.dated:
                column.old[nodes] = False
            column.cost[nodes], column.device[nodes] = self.policy.evaluate(self, column, nodes, devices)

    def devices_for(self, column: Column, node: int) -> tuple[int, ...]:
        """The devices of a node that the shape would get: the policy's, or of several the fullest that fit."""
        shape = column.shape
        if shape.devices == 0:
            return ()
        if shape.devices == 1:
            return (int(column.device[node]),)
        _, fits = self.fits(column, np.array([node]))
        return self._fullest(shape, node, fits[0])

    def _fullest(self, shape: Shape, node: int, able: Array) -> tuple[int, ...]:
        order = sorted(able.nonzero()[0], key=lambda d: (self.level[node, d], self.device_sig[node, d], d))
        return tuple(int(d) for d in sorted(order[: shape.devices]))

    def take(self, shape: Shape, spot: Spot, key: int) -> None:
        """Count what is placed; key names the Instance (any integer, the same for `give`)."""
        self._change(shape, spot, key, 1)

    def give(self, shape: Shape, spot: Spot, key: int) -> None:
        """Count what departs."""
        self._change(shape, spot, key, -1)

    def _change(self, shape: Shape, spot: Spot, key: int, sign: int) -> None:
        node = spot.node
        cpu = self.cpu.item(node) - sign * shape.cpu_milli
        self.cpu[node] = cpu
        self.ram[node] -= sign * shape.host_memory_mib
        mark = sign * mix64(key)
        freed = 0
        for d in spot.devices:
            compute = level = self.compute.item(node, d) - sign * shape.compute
            clients = self.clients.item(node, d) - sign
            self.compute[node, d] = compute
            self.clients[node, d] = clients
            self._spare[node, d] = compute if clients > 0 else -1
            if shape.mechanism:
                users = self._users[node, d] = self._users.get((node, d), 0) + sign
                self.bound[node, d] = self._number(shape.mechanism) if users else 0
            usable = self.usable.item(node, d)
            memory = self.memory.item(node, d) - sign * (usable if shape.whole else shape.memory_mib)
            if memory != usable:
                level = min(level, 100 * memory // max(usable, 1))
            # Devices that were declared smaller while in use may be far over; below zero all is alike.
            level = max(level, -1)
            self.memory[node, d] = memory
            freed += level - self.level.item(node, d)
            self.level[node, d] = level
            self.state[node, d] = self.kind.item(node, d) * 101 + max(level, 0)
            signature = (self.device_sig.item(node, d) + mark) & MASK
            self.device_sig[node, d] = signature
            self.device_key[node, d] = (level << _KEY_SHIFT) | (signature >> (62 - _KEY_SHIFT))
        free = self.free.item(node) + freed
        self.free[node] = free
        self.open[node] = free + min(cpu, MANY_CORES) / 1000
        if spot.devices:
            self._most_spare[node] = max(self._spare[node].tolist())
        # What lies on a node matters, and beside what: a pair on one device is not the pair on two.
        self.sig[node] = (self.sig.item(node) + mark) & MASK
        self.version += 1
        self.touched[node] = self.version
        place = self.version % _LOGGED
        self._log[place] = self._log[place + _LOGGED] = node
        self.fresh.add(node)

    def reprice(self) -> None:
        """The policy's prices have changed: the best of each column are looked at again when next asked."""
        self.prices += 1


def accepts(bay: Bay, shape: Shape) -> bool:
    """Whether the device is of a kind that the shape may use."""
    return (
        (not shape.device_models or bay.model in shape.device_models)
        and shape.labels <= bay.labels
        and (not shape.mechanism or not bay.mechanisms or shape.mechanism in bay.mechanisms)
    )


def share(bay: Bay, shape: Shape) -> int:
    """Percent of the device that one slice of the shape takes, rounded up; at least 1, over 100 where it never fits."""
    memory = -(-100 * shape.memory_mib // bay.memory_mib) if bay.memory_mib else 101
    return max(1, shape.compute, min(memory, 101))
