"""What nodes' leftovers are good for: the sums that the adaptive policy weighs, kept as one row for each node.

Most of what the policy asks of a node is linear in what lies there: a sum over its devices of a table indexed by the
device's state (kind and level), plus its host CPU and memory times a vector. A node's *row* is that sum:

| columns | what |
|---|---|
| a price of a CPU core each | worth of the devices net of the CPU for what fills them, plus the worth of the CPU |
| a group each | level of devices that can take its slice (shapes alike in what they ask of devices are a group) |
| a group of several devices each | how many devices could take a slice |
| three a scarce shape | how many of it the host's CPU, its memory and its devices would take |

A row with a slice placed is the row, less the device's old entry, plus its new one, less what the host gives: a few
array operations for all candidates at once. What is not linear (minima, thresholds) is worked out on the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packer.engine import Column, Engine, accepts, share
from packer.mix import Mix, Shape

Array = NDArray[Any]

#: Prices of a CPU core on a node, in percent of a device.
CORE_PRICES: Final = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 30, 50], np.float64)
_PLENTY: Final = 1e6
_TABLE: Final = 1 << 22
"""Numbers in the table of hosts, above which they are summed up anew each time."""
_ROUNDING: Final = 1 + 1e-9
"""By what spots are counted too many, so that a whole number of them is not rounded down to the one below."""


class Leftover:
    """Rows of an engine's nodes, for a mix and the worth of its shapes (percent of a device).

    `gradient` is what a percent of expected use for the next request is worth.
    """

    def __init__(self, engine: Engine, mix: Mix, price: Array, gradient: float) -> None:
        self._engine = engine
        self._shapes = mix.shapes
        firsts, member = _groups(mix.shapes)
        weights = np.array(mix.weights)
        member_weight = np.zeros((len(mix.shapes), len(firsts)))
        for i, g in enumerate(member):
            if g < len(firsts):
                member_weight[i, g] = gradient * weights[i] / weights.sum()
        self._hosting = _Hosting(mix, member_weight)
        self._need = np.array([s.devices for s in firsts if s.devices > 1])
        prices, several = len(CORE_PRICES), len(self._need)
        self._usable = slice(prices, prices + len(firsts))
        self._enough = slice(prices, prices + several)
        self._counted = slice(prices + len(firsts), prices + len(firsts) + several)
        self._number = np.zeros(((len(engine.kinds) + 1) * 101, len(firsts) + 1))
        self._number[:, len(firsts)] = _PLENTY
        self._member = np.array(member, np.int64)
        self._cpu = np.array([max(s.cpu_milli, 1) for s in mix.shapes], np.float64)
        self._ram = np.array([max(s.host_memory_mib, 1) for s in mix.shapes], np.float64)
        self._devices = np.array([max(1, s.devices) for s in mix.shapes], np.float64)
        self._plain = self._tabulate(firsts, price)
        self._after: dict[int, Array] = {}
        self._asked: dict[int, tuple[Array, Array]] = {}
        self._spots = np.zeros((len(engine.cpu), len(mix.shapes)))
        self.value = np.zeros(len(engine.cpu))
        """By node: what it is worth at the prices."""
        self.worth = np.zeros(len(engine.cpu))
        """By node: that, its expected use and its spots for scarce shapes."""
        self._counted_at = -1
        self.mark(np.zeros(0, np.int64), np.zeros(0))

    def _tabulate(self, firsts: Sequence[Shape], price: Array) -> Array:
        levels, prices = np.arange(101), len(CORE_PRICES)
        table = np.zeros((len(self._number), self._counted.stop))
        for k, bay in enumerate(self._engine.kinds):
            net = np.zeros((102, prices))
            for s, p in zip(self._shapes, price, strict=True):
                if s.devices and accepts(bay, s):
                    size = share(bay, s)
                    net[size] = np.maximum(net[size], (p - CORE_PRICES * s.cpu_milli / 1000) / s.devices)
            block = slice(k * 101, (k + 1) * 101)
            table[block, :prices] = _knapsack(net)
            for g, s in enumerate(firsts):
                if accepts(bay, s) and (size := share(bay, s)) <= 100:
                    table[block, prices + g] = np.where(levels >= size, levels, 0)
                    self._number[block, g] = levels // size
        table[:, self._counted] = self._number[:, : len(self._need)]
        return table

    def mark(self, shapes: Array, dear: Array) -> None:
        """From now on spots for these shapes (numbers in the mix) are worth so much each."""
        self._dear = dear
        first = self._counted.stop
        count = len(shapes)
        self._by_cpu, self._by_ram, self._by_device = (
            slice(first + i * count, first + (i + 1) * count) for i in range(3)
        )
        self._table = np.zeros((len(self._plain), first + 3 * count))
        self._table[:, :first] = self._plain
        self._table[:, self._by_device] = self._number[:, self._member[shapes]] * _ROUNDING / self._devices[shapes]
        self._per_host = np.zeros((2, first + 3 * count))
        self._per_host[0, : len(CORE_PRICES)] = CORE_PRICES / 1000
        self._per_host[0, self._by_cpu] = _ROUNDING / self._cpu[shapes]
        self._per_host[1, self._by_ram] = _ROUNDING / self._ram[shapes]
        self._rows = np.zeros((len(self._engine.cpu), first + 3 * count))
        self._asked.clear()
        self.settle(np.arange(len(self._rows)))

    def settle(self, nodes: Array) -> None:
        """Work out what nodes that changed are worth."""
        hosts = self._engine.host.take(nodes, 1)
        self._renew(nodes, hosts)
        self.value[nodes], self.worth[nodes] = self._weigh(self._rows.take(nodes, 0), hosts)

    def _renew(self, nodes: Array, hosts: Array) -> None:
        rows = np.add.reduce(self._table.take(self._engine.state.take(nodes, 0), 0), 1)
        rows += hosts.T @ self._per_host
        self._rows[nodes] = rows

    def _weigh(self, rows: Array, hosts: Array) -> tuple[Array, Array]:
        """(value at the prices, all that they are worth) of rows, which are spoilt, and what their hosts have left."""
        value = np.minimum.reduce(rows[:, : len(CORE_PRICES)], 1)
        if len(self._need):
            rows[:, self._enough][rows[:, self._counted] < self._need] = 0
        worth = np.vecdot(rows[:, self._usable], self._hosting.weights(*hosts))
        worth += value
        if len(self._dear):
            spots = np.minimum(rows[:, self._by_cpu], rows[:, self._by_ram])
            np.minimum(spots, rows[:, self._by_device], out=spots)
            worth += np.floor(spots, out=spots) @ self._dear
        return value, worth

    # --- rows with a shape placed ---

    def with_one(self, column: Column, nodes: Array, devices: Array, fresh: Array) -> Array:
        """What nodes are worth with a slice on the device given for each; `fresh` nodes are settled on the way."""
        hosts, rows = self._gather(nodes, fresh)
        before = self._engine.state[nodes, devices]
        placed = rows[len(fresh) :]
        placed -= self._table.take(before, 0)
        placed += self._table.take(self._state_after(column).take(before), 0)
        return self._placed(column, hosts, rows, fresh)

    def with_several(self, column: Column, nodes: Array, fits: Array, fresh: Array) -> Array:
        """With slices on the fullest devices that fit (on none where the shape asks for none)."""
        hosts, rows = self._gather(nodes, fresh)
        if count := column.shape.devices:
            order = np.argsort(np.where(fits, self._engine.level[nodes], 127), axis=1, kind="stable")[:, :count]
            before = np.take_along_axis(self._engine.state[nodes], order, 1)
            rows[len(fresh) :] += (self._table[self._state_after(column)[before]] - self._table[before]).sum(1)
        return self._placed(column, hosts, rows, fresh)

    def _gather(self, nodes: Array, fresh: Array) -> tuple[Array, Array]:
        """(what hosts have left, rows) of nodes; those of fresh nodes come first, and are made anew."""
        if not len(fresh):
            return self._engine.host.take(nodes, 1), self._rows.take(nodes, 0)
        nodes = np.concatenate((fresh, nodes))
        hosts = self._engine.host.take(nodes, 1)
        self._renew(fresh, hosts[:, : len(fresh)])
        return hosts, self._rows.take(nodes, 0)

    def _placed(self, column: Column, hosts: Array, rows: Array, fresh: Array) -> Array:
        """Take the shape from the hosts of all but fresh nodes, and weigh."""
        known = self._asked.get(column.index)
        if known is None:
            asked = np.array([[column.shape.cpu_milli], [column.shape.host_memory_mib]])
            known = self._asked[column.index] = asked, asked.T @ self._per_host
        count = len(fresh)
        hosts[:, count:] -= known[0]
        rows[count:] -= known[1]
        value, worth = self._weigh(rows, hosts)
        if count:
            self.value[fresh], self.worth[fresh] = value[:count], worth[:count]
        return worth[count:]

    def _state_after(self, column: Column) -> Array:
        """The state of a device of each state once the shape lies there."""
        known = self._after.get(column.index)
        if known is None:
            sizes = np.array([*(share(kind, column.shape) for kind in self._engine.kinds), 0])[:, None]
            levels = np.maximum(np.arange(101) - sizes, 0)
            known = self._after[column.index] = (np.arange(len(sizes))[:, None] * 101 + levels).ravel()
        return known

    # --- spots ---

    def spots(self) -> Array:
        """How many of each shape of the mix would fit the fleet as it is, if it alone came."""
        engine = self._engine
        if self._counted_at < engine.version:
            nodes = engine.changed(self._counted_at)
            self._counted_at = engine.version
            hosts = np.minimum(engine.cpu[nodes][:, None] / self._cpu, engine.ram[nodes][:, None] / self._ram)
            number = self._number[engine.state[nodes]].sum(1)[:, self._member] / self._devices
            self._spots[nodes] = np.floor(np.minimum(hosts, number) * _ROUNDING)
        return np.asarray(self._spots.sum(0))


class _Hosting:
    """How much of the mix a host with so much CPU and memory left could take: weights of its groups."""

    def __init__(self, mix: Mix, member_weight: Array) -> None:
        self._cpu_asked = np.array([s.cpu_milli for s in mix.shapes], np.int64)
        self._ram_asked = np.array([s.host_memory_mib for s in mix.shapes], np.int64)
        self._member_weight = member_weight
        self._cpu_steps, self._ram_steps = np.unique(self._cpu_asked), np.unique(self._ram_asked)
        self._width = len(self._ram_steps) + 1
        self._cpu_from = np.concatenate([[-1], self._cpu_steps])
        self._ram_from = np.concatenate([[-1], self._ram_steps])
        self._table: Array | None = None
        cells = len(self._cpu_from) * self._width
        if cells * member_weight.shape[1] <= _TABLE:
            self._table = self._sum(np.arange(cells))

    def weights(self, cpu: Array, ram: Array) -> Array:
        """float64[n, G] for hosts with so much left."""
        cell = self._cpu_steps.searchsorted(cpu, "right")
        cell *= self._width
        cell += self._ram_steps.searchsorted(ram, "right")
        return self._sum(cell) if self._table is None else np.asarray(self._table.take(cell, 0))

    def _sum(self, index: Array) -> Array:
        cpu, ram = self._cpu_from[index // self._width], self._ram_from[index % self._width]
        enough = (cpu[:, None] >= self._cpu_asked) & (ram[:, None] >= self._ram_asked)
        return np.asarray(enough.astype(np.float64) @ self._member_weight)


def _groups(shapes: Sequence[Shape]) -> tuple[list[Shape], list[int]]:
    """(one shape of each group, those of several devices first; the group of each shape, the last for hosts alone)."""
    numbers: dict[tuple[object, ...], int] = {}
    firsts: list[Shape] = []
    member: list[int] = []
    for s in sorted(shapes, key=lambda s: s.devices < 2):
        key = (s.compute, s.memory_mib, s.devices, s.device_models, s.labels, s.mechanism)
        if s.devices and key not in numbers:
            numbers[key] = len(firsts)
            firsts.append(s)
    for s in shapes:
        key = (s.compute, s.memory_mib, s.devices, s.device_models, s.labels, s.mechanism)
        member.append(numbers[key] if s.devices else len(firsts))
    return firsts, member


def _knapsack(net: Array) -> Array:
    """The best worth of each level filled with slices; net[z] is what a slice of size z is worth at each price."""
    worth = np.zeros((101, net.shape[1]))
    sizes = [z for z in range(1, 101) if net[z].max() > 0]
    for level in range(1, 101):
        row = worth[level - 1]
        for z in sizes:
            if z > level:
                break
            row = np.maximum(row, worth[level - z] + net[z])
        worth[level] = row
    return worth
