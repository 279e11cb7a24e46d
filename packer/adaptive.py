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

from packer.engine import Column, Engine
from packer.leftover import Leftover
from packer.mix import Mix, Shape
from packer.prices import opportunity_prices

Array = NDArray[Any]

_GRADIENT: Final = 0.2
_CONCENTRATION: Final = 0.01
_SCARCITY: Final = 14.0
_SCARCE_FROM: Final = 0.05
_STRUCTURAL_FROM: Final = 0.5
_LOOK_EVERY: Final = 100
"""Changes of the fleet between two looks at scarcity."""
_NOTABLE: Final = 0.3
_NONE: Final = np.iinfo(np.int64).max
_NOBODY: Final = np.zeros(0, np.int64)


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
        self._size = np.array([s.compute * s.devices for s in mix.shapes], np.float64)
        self._cpu = np.array([max(s.cpu_milli, 1) for s in mix.shapes], np.float64)
        self._leftover = Leftover(engine, mix, self._price, self.gradient)
        self._looked = -_LOOK_EVERY
        self._dear = np.zeros(len(mix.shapes))
        engine.fresh.clear()

    def _look(self, engine: Engine) -> None:
        """Reprice scarce spots; where that changes much, every cost is computed anew."""
        self._looked = engine.version
        if engine.fresh:
            self._leftover.settle(self._fresh(engine))
        spots = self._leftover.spots()
        coming = self._weight * float(self._leftover.value.sum()) / self._mean
        ratio = (coming + 2 * np.sqrt(coming)) / np.maximum(spots, 0.5)
        free = float(engine.level.sum())
        host = float(engine.cpu.sum())
        held = np.where(self._size > 0, spots * self._size / max(free, 1.0), spots * self._cpu / max(host, 1.0))
        structural = np.maximum(0, (1 - np.minimum(1, held) - self.structural) / (1 - self.structural))
        dear = self.scarcity * self._price * np.minimum(ratio, 3.0) ** self.power * structural
        dear[(ratio < _SCARCE_FROM) | (spots < 1)] = 0
        if np.any(np.abs(dear - self._dear) > _NOTABLE * np.maximum(dear, self._dear) + 0.5):
            self._dear = dear
            acute = dear.nonzero()[0]
            self._leftover.mark(acute, dear[acute])
            engine.reprice()

    def _fresh(self, engine: Engine) -> Array:
        """Nodes to settle, ascending; from here on they are."""
        nodes = np.array(sorted(engine.fresh), np.int64)
        engine.fresh.clear()
        return nodes

    def begin(self, engine: Engine) -> None:
        """A new batch: scarcity is looked at as if nothing were known of it, as a fleet that is built anew does."""
        if self._engine is not engine:
            return
        self._looked = -_LOOK_EVERY
        if self._dear.any():
            self._dear = np.zeros(len(self.mix.shapes))
            self._leftover.mark(_NOBODY, np.zeros(0))
            engine.forget_costs()

    # --- the policy ---

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        """Cost and device of each node that fits."""
        if self._engine is not engine:
            self._bind(engine)
        left = self._leftover
        if engine.version - self._looked >= _LOOK_EVERY:
            self._look(engine)
        # Nodes that changed are settled together, with the first placement for which one of them is a candidate.
        fresh = _NOBODY if engine.fresh.isdisjoint(nodes.tolist()) else self._fresh(engine)
        shape = column.shape
        if shape.devices != 1:
            worth = left.with_several(column, nodes, fits, fresh)
            return self._lost(engine, shape, nodes, worth), np.zeros(len(nodes), np.int8)
        rows, devices = fits.nonzero()
        single = len(rows) == len(nodes)
        at = nodes if single else nodes.take(rows)
        cost = self._lost(engine, shape, at, left.with_one(column, at, devices, fresh))
        if single:
            return cost, devices
        grid = np.full(fits.shape, np.inf)
        grid[rows, devices] = cost
        least = np.minimum.reduce(grid, 1)
        # Of devices that cost the same the fullest, then the one of the least signature.
        keys = engine.device_key.take(nodes, 0)
        keys[grid > least[:, None]] = _NONE
        return least, keys.argmin(1)

    def _lost(self, engine: Engine, shape: Shape, nodes: Array, worth: Array) -> Array:
        """What nodes are worth less what they would be worth, rounded so that equals are equal."""
        cost = engine.open.take(nodes)
        cost *= self.concentration
        cost += self._leftover.worth.take(nodes)
        cost -= worth
        cost -= self.concentration * shape.cpu_milli / 1000
        return np.asarray(cost.round(4, cost))
