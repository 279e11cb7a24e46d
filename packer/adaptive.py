"""The default policy: opportunity prices, the fragmentation gradient and scarcity, each where it is to be trusted.

The cost of placing a shape on a device of a node is the sum of what is lost:

1. *Value at opportunity prices.* The expected mix has a price for each shape (`prices`: the duals of the linear
   programme that fits as much of the mix as possible into the fleet). A node's leftover is worth what it could hold,
   at those prices, if slices could be cut to measure: with u the price of a host CPU core on this node and v_u(level)
   the best worth of a device's level filled with slices net of u for their CPU (a knapsack, tabulated),

       V(node) = min over u of  u * cpu + sum over devices of v_u(level)

   which is the Lagrangian bound on the node's own packing problem. The minimum over a grid of u makes CPU dear on nodes
   where it is short for the GPUs that are left, and free where it is not; a pooled price cannot.
2. *Expected usefulness* (FGD, see `fragmentation`), with a small weight: prices are blind to how likely it is that
   the slices which would fill a gap come, the gradient is not. On wide mixes it decides among what prices call equal.
3. *Scarcity.* A shape that only few spots can still take, compared with how many of it are to come (its expected
   number plus two standard deviations), makes each of those spots dear. This is what protects whole nodes for replicas
   that need several devices, and typed devices for those that take no others; it is zero as long as there is plenty.
4. *Concentration*: a small price on what stays free on the node, so that of equals the fullest is taken and untouched
   nodes, which keep every option open, stay untouched.

Scarcity is looked at again as the fleet fills; costs are recomputed only when a price has moved notably.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packer.engine import UNBOUNDED, Column, Engine
from packer.mix import Mix, Shape
from packer.prices import opportunity_prices

Array = NDArray[Any]

#: Prices of a CPU core on a node, in percent of a device.
_CORE_PRICES: Final = np.array([0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 30, 50], np.float32)
_GRADIENT: Final = 0.2
_CONCENTRATION: Final = 0.01
_SCARCITY: Final = 14.0
_SCARCE_FROM: Final = 0.1
_STRUCTURAL_FROM: Final = 0.5
_LOOK_EVERY: Final = 100
"""Changes of the fleet between two looks at scarcity."""
_NOTABLE: Final = 0.3


class Adaptive:
    """A policy for `Engine`; one default configuration for every fleet and mix."""

    by_name = False

    def __init__(self, mix: Mix, **tuning: float) -> None:
        self.mix = mix
        self.gradient = tuning.get("gradient", _GRADIENT)
        self.concentration = tuning.get("concentration", _CONCENTRATION)
        self.scarcity = tuning.get("scarcity", _SCARCITY)
        self.structural = tuning.get("structural", _STRUCTURAL_FROM)
        self.power = tuning.get("power", 2.0)
        self.blend = tuning.get("blend", 0.2)
        self._engine: Engine | None = None

    # --- what is known of the fleet ---

    def _bind(self, engine: Engine) -> None:
        self._engine = engine
        mix = self.mix
        self._price = opportunity_prices(engine.racks, mix, self.blend)
        weights = np.array(mix.weights)
        self._weight = weights / weights.sum()
        self._mean = float(sum(w * s.compute * s.devices for s, w in zip(mix.shapes, self._weight, strict=True))) or 1.0
        groups: dict[tuple[object, ...], int] = {}
        firsts: list[Shape] = []
        member: list[int] = []
        for s in mix.shapes:
            if not s.devices:
                member.append(-1)
                continue
            key = (s.compute, s.memory_mib, s.devices, s.device_models, s.labels, s.mechanism)
            if key not in groups:
                groups[key] = len(firsts)
                firsts.append(s)
            member.append(groups[key])
        count = len(firsts)
        self._group = np.array([count if g < 0 else g for g in member])
        self._need = np.array([max(1, s.devices) for s in firsts] + [1], np.float32)
        self._several = (self._need[:count] > 1).nonzero()[0]
        self._cpu = np.array([max(s.cpu_milli, 1) for s in mix.shapes], np.float32)
        self._ram = np.array([max(s.host_memory_mib, 1) for s in mix.shapes], np.float32)
        self._cpu_asked = np.array([s.cpu_milli for s in mix.shapes], np.int64)
        self._ram_asked = np.array([s.host_memory_mib for s in mix.shapes], np.int64)
        self._size = np.array([s.compute * s.devices for s in mix.shapes], np.float32)
        self._member_weight = np.zeros((len(mix.shapes), count), np.float32)
        for i, g in enumerate(member):
            if g >= 0:
                self._member_weight[i, g] = self._weight[i]
        self._tabulate(engine, firsts)
        nodes = len(engine.cpu)
        self._worth = np.zeros((nodes, len(_CORE_PRICES)), np.float32)
        self._value = np.zeros(nodes, np.float32)
        self._usable = np.zeros((nodes, count), np.float32)
        self._number = np.zeros((nodes, count + 1), np.float32)
        self._useful = np.zeros(nodes, np.float32)
        self._spots = np.zeros((nodes, len(mix.shapes)), np.float32)
        self._seen = -1
        self._looked = -_LOOK_EVERY
        self._dear = np.zeros(len(mix.shapes), np.float32)
        self._acute = np.zeros(0, np.int64)
        self._sync(engine)

    def _tabulate(self, engine: Engine, firsts: list[Shape]) -> None:
        kinds = len(engine.kinds)
        count = len(firsts)
        levels = np.arange(101)
        self._worth_of = np.zeros(((kinds + 1) * 101, len(_CORE_PRICES)), np.float32)
        self._usable_of = np.zeros(((kinds + 1) * 101, count), np.float32)
        self._number_of = np.zeros(((kinds + 1) * 101, count + 1), np.float32)
        columns = [engine.column(s) for s in self.mix.shapes]
        for k in range(kinds):
            n, d = (x[0] for x in (engine.kind == k).nonzero())
            net = np.zeros((102, len(_CORE_PRICES)), np.float32)
            for column, price in zip(columns, self._price, strict=True):
                s = column.shape
                if s.devices and column.allowed[n, d]:
                    size = min(int(column.size[n, d]), 101)
                    net[size] = np.maximum(net[size], (price - _CORE_PRICES * s.cpu_milli / 1000) / s.devices)
            worth = np.zeros((101, len(_CORE_PRICES)), np.float32)
            sizes = [z for z in range(1, 101) if net[z].max() > 0]
            for level in range(1, 101):
                row = worth[level - 1]
                for z in sizes:
                    if z > level:
                        break
                    row = np.maximum(row, worth[level - z] + net[z])
                worth[level] = row
            block = slice(k * 101, (k + 1) * 101)
            self._worth_of[block] = worth
            for g, s in enumerate(firsts):
                column = engine.column(s)
                if column.allowed[n, d] and column.size[n, d] <= 100:
                    size = int(column.size[n, d])
                    self._usable_of[block, g] = np.where(levels >= size, levels, 0)
                    self._number_of[block, g] = levels // size
        self._base = np.where(engine.kind < 0, kinds, engine.kind).astype(np.int64) * 101

    def _sync(self, engine: Engine) -> None:
        """Bring what is kept of each node up to date."""
        nodes = engine.changed(self._seen)
        if nodes is None:
            return
        self._seen = engine.version
        at = self._base[nodes] + engine.level[nodes]
        cpu, ram = engine.cpu[nodes], engine.ram[nodes]
        self._worth[nodes] = worth = self._worth_of[at].sum(1)
        self._value[nodes] = (worth + cpu[:, None].astype(np.float32) / 1000 * _CORE_PRICES).min(1)
        self._usable[nodes] = usable = self._usable_of[at].sum(1)
        self._number[nodes] = number = self._number_of[at].sum(1)
        self._useful[nodes] = (self._hosted(cpu, ram) * self._enough(usable, number)).sum(1)
        self._spots[nodes] = np.minimum(self._hosts(cpu, ram), self._device_spots(number)[:, self._group])

    def _hosted(self, cpu: Array, ram: Array) -> Array:
        enough = (cpu[:, None] >= self._cpu_asked) & (ram[:, None] >= self._ram_asked)
        return enough.astype(np.float32) @ self._member_weight

    def _enough(self, usable: Array, number: Array) -> Array:
        if len(self._several):
            short = number[:, self._several] < self._need[self._several]
            usable = usable.copy()
            usable[:, self._several] = np.where(short, 0, usable[:, self._several])
        return usable

    def _hosts(self, cpu: Array, ram: Array) -> Array:
        return np.minimum(np.floor(cpu[:, None] / self._cpu), np.floor(ram[:, None] / self._ram))

    def _device_spots(self, number: Array) -> Array:
        spots = np.floor(number / self._need)
        spots[:, -1] = 1e6
        return spots

    def _look(self, engine: Engine) -> None:
        """Reprice scarce spots; where that changes much, every cost is computed anew."""
        self._looked = engine.version
        spots = self._spots.sum(0)
        coming = self._weight * float(self._value.sum()) / self._mean
        ratio = (coming + 2 * np.sqrt(coming)) / np.maximum(spots, 0.5)
        free = float(engine.level.sum())
        host = float(engine.cpu.sum())
        held = np.where(self._size > 0, spots * self._size / max(free, 1.0), spots * self._cpu / max(host, 1.0))
        structural = np.maximum(0, (1 - np.minimum(1, held) - self.structural) / (1 - self.structural))
        dear = self.scarcity * self._price * np.minimum(ratio, 3.0) ** self.power * structural
        dear[(ratio < _SCARCE_FROM) | (spots < 1)] = 0
        if np.any(np.abs(dear - self._dear) > _NOTABLE * np.maximum(dear, self._dear) + 0.5):
            self._dear = dear.astype(np.float32)
            self._acute = self._dear.nonzero()[0]
            engine.reprice()

    # --- the policy ---

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        """Cost and device of each node that fits."""
        if self._engine is not engine:
            self._bind(engine)
        self._sync(engine)
        if engine.version - self._looked >= _LOOK_EVERY:
            self._look(engine)
        shape = column.shape
        cpu, ram = engine.cpu[nodes] - shape.cpu_milli, engine.ram[nodes] - shape.host_memory_mib
        core = cpu[:, None].astype(np.float32) / 1000 * _CORE_PRICES
        level = engine.level[nodes]
        if shape.devices == 1:
            rows, devices = _distinct(level, fits).nonzero()
            before = self._base[nodes[rows], devices] + level[rows, devices]
            taken = np.minimum(column.size[nodes[rows], devices], level[rows, devices])
            at = nodes[rows]
            worth = self._worth[at] - self._worth_of[before] + self._worth_of[before - taken]
            usable = self._usable[at] - self._usable_of[before] + self._usable_of[before - taken]
            number = self._number[at] - self._number_of[before] + self._number_of[before - taken]
        else:
            rows = np.arange(len(nodes))
            left = level
            if shape.devices:
                order = np.argsort(np.where(fits, level, 127), axis=1, kind="stable")[:, : shape.devices]
                left = level.copy()
                rest = np.take_along_axis(level, order, 1) - np.take_along_axis(column.size[nodes], order, 1)
                np.put_along_axis(left, order, np.maximum(rest, 0), 1)
            at = self._base[nodes] + left
            worth, usable, number = self._worth_of[at].sum(1), self._usable_of[at].sum(1), self._number_of[at].sum(1)
            at = nodes
        cost = self._value[at] - (worth + core[rows]).min(1)
        useful = (self._hosted(cpu, ram)[rows] * self._enough(usable, number)).sum(1)
        cost += self.gradient * (self._useful[at] - useful)
        if len(self._acute):
            acute = self._acute
            hosts = np.minimum(np.floor(cpu[:, None] / self._cpu[acute]), np.floor(ram[:, None] / self._ram[acute]))
            group = self._group[acute]
            spots = np.floor(number[:, group] / self._need[group])
            spots[:, group == len(self._need) - 1] = 1e6
            cost += (self._spots[at][:, acute] - np.minimum(hosts[rows], spots)) @ self._dear[acute]
        # What has no bound cannot be kept free.
        stays = self.concentration * (engine.free[nodes] + np.where(cpu < UNBOUNDED // 2, cpu, 0) / 1000)
        cost = np.round(cost.astype(np.float64) + stays[rows], 4)
        if shape.devices != 1:
            return cost, np.zeros(len(nodes), np.int8)
        grid = np.full(level.shape, np.inf)
        grid[rows, devices] = cost
        return _twins(engine, nodes, grid, level, fits, column)


def _distinct(level: Array, fits: Array) -> Array:
    """The devices to look at: of those alike in level on one node, one."""
    seen = fits.copy()
    for d in range(1, level.shape[1]):
        alike = (level[:, :d] == level[:, d : d + 1]) & fits[:, :d]
        seen[:, d] &= ~alike.any(1)
    return seen


def _twins(engine: Engine, nodes: Array, grid: Array, level: Array, fits: Array, column: Column) -> tuple[Array, Array]:
    """Of devices alike in level to the cheapest, the one of the least signature."""
    least = grid.min(1)
    best = np.take_along_axis(level, grid.argmin(1)[:, None], 1)
    tied = fits & ((level == best) | (grid == least[:, None]))
    lowest = np.where(tied, level, 127).min(1)
    tied &= level == lowest[:, None]
    device = np.where(tied, engine.device_sig[nodes], np.iinfo(np.int64).max).argmin(1)
    return least, device
