"""Fragmentation Gradient Descent (Weng et al., "Beware of Fragmentation", USENIX ATC 2023), over an expected mix.

Of a node's free GPU, a shape m can use what lies on devices that take its slice, provided that the node can host m at
all (host CPU, number of devices, model); the rest is fragment for m. Expected usefulness of a node is the mean over the
mix of what can be used; fragmentation is what is free less that. FGD takes the node and device where placing loses the
least usefulness. In levels (percent of a device) with P_g(c) the weight of shapes of device demand g that host CPU c
suffices for, and U_g the usable level:

    useful(node) = sum over g of P_g(cpu) * U_g(levels)

Shapes alike in what they ask of devices are one group g, so that U is computed once for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from packer.engine import Column, Engine
from packer.mix import Mix, Shape

Array = NDArray[Any]


class Usefulness:
    """Expected usefulness of nodes' leftovers for a mix; all amounts in percent of a device."""

    def __init__(self, engine: Engine, mix: Mix, host_memory: bool = False) -> None:
        total = sum(mix.weights)
        groups: dict[tuple[object, ...], int] = {}
        rows: list[tuple[int, Shape, float]] = []
        firsts: list[Shape] = []
        for shape, weight in zip(mix.shapes, mix.weights, strict=True):
            if not shape.devices:
                continue
            key = (shape.compute, shape.memory_mib, shape.devices, shape.device_models, shape.labels, shape.mechanism)
            g = groups.setdefault(key, len(groups))
            if g == len(firsts):
                firsts.append(shape)
            rows.append((g, shape, weight / total))
        count = max(1, len(firsts))
        self.hosted = sum(w for _, _, w in rows)
        self.member_cpu = np.array([s.cpu_milli for _, s, _ in rows], np.int64)
        self.member_ram = np.array([s.host_memory_mib for _, s, _ in rows], np.int64) if host_memory else None
        self.member_weight = np.zeros((len(rows), count))
        for i, (g, _, w) in enumerate(rows):
            self.member_weight[i, g] = w
        self.need = np.array([s.devices for s in firsts] or [1])
        self.several = self.need > 1
        kinds = len(engine.kinds)
        # usable[kind, level] for each group: the level itself where the group's slice fits, else 0.
        self.table = np.zeros(((kinds + 1) * 101, count))
        levels = np.arange(101)
        for g, shape in enumerate(firsts):
            probe = engine.column(shape)
            for k in range(kinds):
                where = (engine.kind == k).nonzero()
                n, d = where[0][0], where[1][0]
                if probe.allowed[n, d]:
                    size = int(probe.size[n, d])
                    self.table[k * 101 : (k + 1) * 101, g] = np.where(levels >= size, levels, 0)
        kind = np.where(engine.kind < 0, kinds, engine.kind)
        self.base = kind.astype(np.int64) * 101
        self._any_several = bool(self.several.any())

    def weights(self, cpu: Array, ram: Array) -> Array:
        """P_g for hosts with this much left: float[n, G]."""
        enough = cpu[:, None] >= self.member_cpu
        if self.member_ram is not None:
            enough &= ram[:, None] >= self.member_ram
        return enough.astype(np.float64) @ self.member_weight

    def loss(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> Array:
        """Usefulness lost on each device that fits: float[n, D], inf elsewhere; [n, 1] for several or none."""
        shape = column.shape
        base, level = self.base[nodes], engine.level[nodes]
        cpu, ram = engine.cpu[nodes], engine.ram[nodes]
        before = self.weights(cpu, ram)
        after = self.weights(cpu - shape.cpu_milli, ram - shape.host_memory_mib)
        single = self.table[base + level]
        usable = single.sum(1)
        counts = (single > 0).sum(1) if self._any_several else None
        full = usable if counts is None else np.where(counts >= self.need, usable, 0)
        now = np.einsum("ng,ng->n", before, full)
        if shape.devices == 0:
            return np.asarray(now - np.einsum("ng,ng->n", after, full))[:, None]
        if shape.devices > 1:
            ranked = np.where(fits, level, 127)
            chosen = np.argsort(ranked, axis=1, kind="stable")[:, : shape.devices]
            left = level.copy()
            np.put_along_axis(
                left,
                chosen,
                np.take_along_axis(level, chosen, 1) - np.take_along_axis(column.size[nodes], chosen, 1),
                1,
            )
            moved = self.table[base + np.maximum(left, 0)]
            total = moved.sum(1)
            if counts is not None:
                total = np.where((moved > 0).sum(1) >= self.need, total, 0)
            return np.asarray(now - np.einsum("ng,ng->n", after, total))[:, None]
        left = np.maximum(level - column.size[nodes], 0)
        moved = self.table[base + left]
        total = usable[:, None, :] + moved - single
        if counts is not None:
            kept = counts[:, None, :] - ((single > 0) & (moved == 0))
            total = np.where(kept >= self.need, total, 0)
        lost = now[:, None] - np.einsum("ng,ndg->nd", after, total)
        return np.where(fits, lost, np.inf)


class Gradient:
    """FGD as a policy, without the published rounding: the least loss of expected usefulness."""

    by_name = False

    def __init__(self, mix: Mix) -> None:
        self.mix = mix
        self._usefulness: Usefulness | None = None

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        if self._usefulness is None:
            self._usefulness = Usefulness(engine, self.mix)
        lost = self._usefulness.loss(engine, column, nodes, fits)
        return pick(engine, nodes, np.round(lost, 9), column.shape.devices == 1)


def pick(engine: Engine, nodes: Array, cost: Array, one: bool) -> tuple[Array, Array]:
    """Least cost of each node, and its device; of equal devices the least level, then the least signature."""
    if not one:
        return cost[:, 0], np.zeros(len(nodes), np.int8)
    least = cost.min(1)
    # Ties inside a node: exact, on integers.
    tied = cost == least[:, None]
    level = np.where(tied, engine.level[nodes], 127)
    tied &= level == level.min(1)[:, None]
    device = np.where(tied, engine.device_sig[nodes], np.iinfo(np.int64).max).argmin(1)
    return least, device
