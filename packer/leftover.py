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
_ROUNDING: Final = 1e-6


class Leftover:
    """Rows of an engine's nodes, for a mix and the worth of its shapes (percent of a device)."""

    def __init__(self, engine: Engine, mix: Mix, price: Array) -> None:
        self._engine = engine
        self._shapes = mix.shapes
        firsts, member = _groups(mix.shapes)
        weights = np.array(mix.weights)
        member_weight = np.zeros((len(mix.shapes), len(firsts)))
        for i, g in enumerate(member):
            if g < len(firsts):
                member_weight[i, g] = weights[i] / weights.sum()
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
        self._spots = np.zeros((len(engine.cpu), len(mix.shapes)))
        self.value = np.zeros(len(engine.cpu))
        """By node: what it is worth at the prices."""
        self.useful = np.zeros(len(engine.cpu))
        """By node: its expected use for the next request, in percent of a device."""
        self.scarce = np.zeros(len(engine.cpu))
        """By node: what its spots for scarce shapes are worth."""
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
        self._table[:, self._by_device] = self._number[:, self._member[shapes]] / self._devices[shapes]
        self._per_cpu, self._per_ram = np.zeros(first + 3 * count), np.zeros(first + 3 * count)
        self._per_cpu[: len(CORE_PRICES)] = CORE_PRICES / 1000
        self._per_cpu[self._by_cpu] = 1 / self._cpu[shapes]
        self._per_ram[self._by_ram] = 1 / self._ram[shapes]
        self._rows = np.zeros((len(self._engine.cpu), first + 3 * count))
        self._seen = np.full(len(self._rows), -1, np.int64)
        self.sync(np.arange(len(self._rows)))

    def stale(self, nodes: Array) -> Array:
        """Those of the nodes that changed since their rows were last worked out."""
        return np.asarray(nodes[self._engine.touched[nodes] > self._seen[nodes]])

    def sync(self, nodes: Array) -> None:
        """Work out the rows of nodes that changed."""
        engine = self._engine
        self._seen[nodes] = engine.version
        cpu, ram = engine.cpu[nodes], engine.ram[nodes]
        rows = self._table[engine.state[nodes]].sum(1)
        rows += cpu[:, None] * self._per_cpu
        rows += ram[:, None] * self._per_ram
        self._rows[nodes] = rows
        self.value[nodes], self.useful[nodes], self.scarce[nodes] = self.weigh(rows, self.hosted(cpu, ram))

    def hosted(self, cpu: Array, ram: Array) -> Array:
        """For `weigh`: which groups hosts with so much left could take."""
        return self._hosting.index(cpu, ram)

    def weigh(self, rows: Array, hosted: Array) -> tuple[Array, Array, Array | float]:
        """(value, expected use, worth of scarce spots) of rows, which are spoilt."""
        value = rows[:, : len(CORE_PRICES)].min(1)
        if len(self._need):
            rows[:, self._enough] *= rows[:, self._counted] >= self._need
        useful = np.einsum("ng,ng->n", rows[:, self._usable], self._hosting.weights(hosted))
        if not len(self._dear):
            return value, useful, 0.0
        spots = np.minimum(rows[:, self._by_cpu], rows[:, self._by_ram])
        spots = np.minimum(spots, rows[:, self._by_device])
        spots += _ROUNDING
        return value, useful, np.floor(spots, spots) @ self._dear

    # --- rows with a shape placed ---

    def with_one(self, column: Column, nodes: Array, devices: Array) -> Array:
        """Rows of nodes with a slice on the device given for each."""
        before = self._engine.state[nodes, devices]
        rows = self._rows.take(nodes, 0)
        rows -= self._table.take(before, 0)
        rows += self._table.take(self._state_after(column)[before], 0)
        rows -= self._host(column.shape)
        return rows

    def with_several(self, column: Column, nodes: Array, fits: Array) -> Array:
        """Rows of nodes with slices on the fullest devices that fit (on none where the shape asks for none)."""
        rows = self._rows.take(nodes, 0)
        if count := column.shape.devices:
            order = np.argsort(np.where(fits, self._engine.level[nodes], 127), axis=1, kind="stable")[:, :count]
            before = np.take_along_axis(self._engine.state[nodes], order, 1)
            rows += (self._table[self._state_after(column)[before]] - self._table[before]).sum(1)
        rows -= self._host(column.shape)
        return rows

    def _host(self, shape: Shape) -> Array:
        return shape.cpu_milli * self._per_cpu + shape.host_memory_mib * self._per_ram

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
            self._spots[nodes] = np.floor(np.minimum(hosts, number) + _ROUNDING)
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

    def index(self, cpu: Array, ram: Array) -> Array:
        """The cell of the table of hosts."""
        row = self._cpu_steps.searchsorted(cpu, "right")
        row *= self._width
        row += self._ram_steps.searchsorted(ram, "right")
        return row

    def weights(self, index: Array) -> Array:
        """float64[n, G]."""
        return self._sum(index) if self._table is None else np.asarray(self._table.take(index, 0))

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
