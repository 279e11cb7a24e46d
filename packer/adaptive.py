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

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packer.engine import Column, Engine, accepts, share
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
_PLENTY: Final = 1e6
_TABLE: Final = 1 << 22
"""Numbers in the table of hosts, above which they are summed up anew each time."""
_NONE: Final = np.iinfo(np.int64).max


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
        # Groups that need several devices of a node come first: only of those it matters whether enough fit.
        ranks = sorted(range(len(firsts)), key=lambda g: firsts[g].devices < 2)
        firsts = [firsts[g] for g in ranks]
        place = {g: i for i, g in enumerate(ranks)}
        member = [place.get(g, -1) for g in member]
        count = len(firsts)
        group = np.array([count if g < 0 else g for g in member])
        self._need = np.array([s.devices for s in firsts if s.devices > 1], np.float32)
        self._several = sum(s.devices > 1 for s in firsts)
        self._size = np.array([s.compute * s.devices for s in mix.shapes], np.float32)
        member_weight = np.zeros((len(mix.shapes), count), np.float32)
        for i, g in enumerate(member):
            if g >= 0:
                member_weight[i, g] = self._weight[i]
        self._hosting = _Hosting(mix, member_weight)
        self._usable = slice(len(_CORE_PRICES), len(_CORE_PRICES) + count)
        number = self._tabulate(engine, firsts)
        self._all = _Spots(mix.shapes, number[:, group])
        nodes = len(engine.cpu)
        self._sums = np.zeros((nodes, self._table.shape[1]), np.float32)
        self._value = np.zeros(nodes, np.float32)
        self._useful = np.zeros(nodes, np.float32)
        self._spots = np.zeros((nodes, len(mix.shapes)), np.float32)
        self._after: dict[int, Array] = {}
        self._seen = self._counted = -1
        self._looked = -_LOOK_EVERY
        self._dear = np.zeros(len(mix.shapes), np.float32)
        self._acute: _Acute | None = None

    def _tabulate(self, engine: Engine, firsts: list[Shape]) -> Array:
        """How many of each group would fit a device of each kind at each level; one more group asks for no device.

        Sets `_table`, by engine state like the answer: the device's worth at each price of a core, what each group can
        use of it, and how many of each group of several would fit.
        """
        kinds, count, prices = len(engine.kinds), len(firsts), len(_CORE_PRICES)
        levels = np.arange(101)
        self._table = np.zeros(((kinds + 1) * 101, prices + count + self._several), np.float32)
        number = np.zeros(((kinds + 1) * 101, count + 1), np.float32)
        number[:, count] = _PLENTY
        for k, bay in enumerate(engine.kinds):
            net = np.zeros((102, prices), np.float32)
            for s, price in zip(self.mix.shapes, self._price, strict=True):
                if s.devices and accepts(bay, s):
                    size = share(bay, s)
                    net[size] = np.maximum(net[size], (price - _CORE_PRICES * s.cpu_milli / 1000) / s.devices)
            worth = np.zeros((101, prices), np.float32)
            sizes = [z for z in range(1, 101) if net[z].max() > 0]
            for level in range(1, 101):
                row = worth[level - 1]
                for z in sizes:
                    if z > level:
                        break
                    row = np.maximum(row, worth[level - z] + net[z])
                worth[level] = row
            block = slice(k * 101, (k + 1) * 101)
            self._table[block, :prices] = worth
            for g, s in enumerate(firsts):
                if accepts(bay, s) and (size := share(bay, s)) <= 100:
                    self._table[block, prices + g] = np.where(levels >= size, levels, 0)
                    number[block, g] = levels // size
        self._table[:, prices + count :] = number[:, : self._several]
        return number

    def _sync(self, engine: Engine) -> None:
        """Bring what is kept of each node up to date."""
        if self._seen == engine.version:
            return
        nodes = engine.changed(self._seen)
        self._seen = engine.version
        self._sums[nodes] = sums = self._table[engine.state[nodes]].sum(1)
        cpu = engine.cpu[nodes]
        core = cpu[:, None].astype(np.float32) / 1000 * _CORE_PRICES
        core += sums[:, : len(_CORE_PRICES)]
        self._value[nodes] = core.min(1)
        self._useful[nodes] = self._usefulness(self._hosting.weights(cpu, engine.ram[nodes]), sums)
        if self._acute is not None:
            self._acute.sync(engine, nodes)

    def _usefulness(self, weights: Array, sums: Array) -> Array:
        """Expected use of nodes with these sums of the table, which are spoilt."""
        usable = sums[:, self._usable]
        if self._several:
            usable[:, : self._several] *= sums[:, self._usable.stop :] >= self._need
        usable *= weights
        return np.asarray(usable.sum(1))

    def _count(self, engine: Engine) -> None:
        """Bring the number of spots for each shape up to date."""
        if self._counted == engine.version:
            return
        nodes = engine.changed(self._counted)
        self._counted = engine.version
        self._spots[nodes] = self._all.spots(
            engine.cpu[nodes], engine.ram[nodes], self._all.number[engine.state[nodes]].sum(1)
        )

    def _states_after(self, engine: Engine, column: Column) -> Array:
        """The state of a device of each state once the shape lies there."""
        known = self._after.get(column.index)
        if known is None:
            sizes = np.array([*(share(kind, column.shape) for kind in engine.kinds), 0])[:, None]
            levels = np.maximum(np.arange(101) - sizes, 0)
            known = self._after[column.index] = (np.arange(len(sizes))[:, None] * 101 + levels).ravel()
        return known

    def _look(self, engine: Engine) -> None:
        """Reprice scarce spots; where that changes much, every cost is computed anew."""
        self._looked = engine.version
        self._count(engine)
        spots = self._spots.sum(0)
        coming = self._weight * float(self._value.sum()) / self._mean
        ratio = (coming + 2 * np.sqrt(coming)) / np.maximum(spots, 0.5)
        free = float(engine.level.sum())
        host = float(engine.cpu.sum())
        held = np.where(self._size > 0, spots * self._size / max(free, 1.0), spots * self._all.cpu / max(host, 1.0))
        structural = np.maximum(0, (1 - np.minimum(1, held) - self.structural) / (1 - self.structural))
        dear = self.scarcity * self._price * np.minimum(ratio, 3.0) ** self.power * structural
        dear[(ratio < _SCARCE_FROM) | (spots < 1)] = 0
        if np.any(np.abs(dear - self._dear) > _NOTABLE * np.maximum(dear, self._dear) + 0.5):
            self._dear = dear.astype(np.float32)
            acute = self._dear.nonzero()[0]
            self._acute = None
            if len(acute):
                self._acute = _Acute([self.mix.shapes[i] for i in acute], self._all.number[:, acute], self._dear[acute])
                self._acute.sync(engine, np.arange(len(engine.cpu)))
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
        weights = self._hosting.weights(cpu, ram)
        stays = self.concentration * (engine.free[nodes] + cpu / 1000)
        after = self._states_after(engine, column)
        at, states = nodes, None
        if shape.devices == 1:
            rows, devices = fits.nonzero()
            at = nodes[rows]
            before = engine.state[at, devices]
            states = before, after[before]
            sums = self._sums[at]
            sums -= self._table.take(before, 0)
            sums += self._table.take(states[1], 0)
            core, weights, stays = core[rows], weights[rows], stays[rows]
        elif shape.devices:
            left = engine.state[nodes]
            order = np.argsort(np.where(fits, engine.level[nodes], 127), axis=1, kind="stable")[:, : shape.devices]
            np.put_along_axis(left, order, after[np.take_along_axis(left, order, 1)], 1)
            sums = self._table[left].sum(1)
        else:
            sums = self._sums[nodes]
        core += sums[:, : len(_CORE_PRICES)]
        cost = self._value[at] - core.min(1)
        cost += self.gradient * (self._useful[at] - self._usefulness(weights, sums))
        if (acute := self._acute) is not None:
            if states is not None:
                number = acute.numbers[at]
                number -= acute.number.take(states[0], 0)
                number += acute.number.take(states[1], 0)
                hosts = acute.hosts(cpu, ram)[rows]
            else:
                number = acute.number[left].sum(1) if shape.devices else acute.numbers[nodes]
                hosts = acute.hosts(cpu, ram)
            cost += acute.lost(at, hosts, number)
        cost = np.round(cost.astype(np.float64) + stays, 4)
        if states is None:
            return cost, np.zeros(len(nodes), np.int8)
        grid = np.full(fits.shape, np.inf)
        grid[rows, devices] = cost
        least = grid.min(1)
        # Of devices that cost the same the fullest, then the one of the least signature.
        return least, np.where(grid == least[:, None], engine.device_key[nodes], _NONE).argmin(1)


class _Hosting:
    """How much of the mix a host with so much CPU and memory left could take: weights of its groups."""

    def __init__(self, mix: Mix, member_weight: Array) -> None:
        self._cpu_asked = np.array([s.cpu_milli for s in mix.shapes], np.int64)
        self._ram_asked = np.array([s.host_memory_mib for s in mix.shapes], np.int64)
        self._member_weight = member_weight
        self._cpu_steps, self._ram_steps = np.unique(self._cpu_asked), np.unique(self._ram_asked)
        self._width = len(self._ram_steps) + 1
        self._table: Array | None = None
        if (len(self._cpu_steps) + 1) * self._width * member_weight.shape[1] <= _TABLE:
            cpu = np.concatenate([[-1], self._cpu_steps])
            ram = np.concatenate([[-1], self._ram_steps])
            self._table = self._sum(np.repeat(cpu, self._width), np.tile(ram, len(cpu)))

    def weights(self, cpu: Array, ram: Array) -> Array:
        """float32[n, G]."""
        if self._table is None:
            return self._sum(cpu, ram)
        row = self._cpu_steps.searchsorted(cpu, "right") * self._width + self._ram_steps.searchsorted(ram, "right")
        return np.asarray(self._table.take(row, 0))

    def _sum(self, cpu: Array, ram: Array) -> Array:
        enough = (cpu[:, None] >= self._cpu_asked) & (ram[:, None] >= self._ram_asked)
        return np.asarray(enough.astype(np.float32) @ self._member_weight)


class _Spots:
    """How many of each of some shapes would fit a node."""

    def __init__(self, shapes: Sequence[Shape], number: Array) -> None:
        self.cpu = np.array([max(s.cpu_milli, 1) for s in shapes], np.float32)
        self._ram = np.array([max(s.host_memory_mib, 1) for s in shapes], np.float32)
        self._need = np.array([max(1, s.devices) for s in shapes], np.float32)
        self.number = np.ascontiguousarray(number)
        """By engine state: slices of each shape that one device takes."""

    def hosts(self, cpu: Array, ram: Array) -> Array:
        """How many the hosts would take, not rounded."""
        return np.minimum(cpu[:, None] / self.cpu, ram[:, None] / self._ram)

    def spots(self, cpu: Array, ram: Array, number: Array) -> Array:
        """Whole shapes that fit hosts with this much left and devices that take so many slices."""
        return self._whole(self.hosts(cpu, ram), number)

    def _whole(self, hosts: Array, number: Array) -> Array:
        return np.asarray(np.floor(np.minimum(hosts, number / self._need)))


class _Acute(_Spots):
    """The shapes that are short of spots, and what each spot is worth."""

    def __init__(self, shapes: Sequence[Shape], number: Array, dear: Array) -> None:
        super().__init__(shapes, number)
        self._dear = dear
        self.numbers = np.zeros((0, len(shapes)), np.float32)
        """By node: slices of each shape that its devices take."""
        self._spots = self.numbers

    def sync(self, engine: Engine, nodes: Array) -> None:
        """Nodes have changed."""
        if len(self.numbers) != len(engine.cpu):
            self.numbers = np.zeros((len(engine.cpu), len(self._dear)), np.float32)
            self._spots = self.numbers.copy()
        self.numbers[nodes] = number = self.number[engine.state[nodes]].sum(1)
        self._spots[nodes] = self.spots(engine.cpu[nodes], engine.ram[nodes], number)

    def lost(self, nodes: Array, hosts: Array, number: Array) -> Array:
        """What nodes lose that come to have these."""
        return np.asarray((self._spots[nodes] - self._whole(hosts, number)) @ self._dear)
