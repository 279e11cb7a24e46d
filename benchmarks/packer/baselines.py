"""The policies to beat, from their papers and published formulas; higher published score is lower cost here.

All filter alike (the engine's exact fit) and break ties by the lowest node name, as the FGD authors' simulator does.
Formulas: Weng et al., USENIX ATC 2023, section 6 and the published simulator's description of each policy; scores are
integers from 0 to 100 there, and so they are here.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from packer.engine import Column, Engine
from packer.fragmentation import Usefulness
from packer.mix import Mix

Array = NDArray[Any]
_CPU: Final = 128_000.0
_GPU: Final = 800.0


class _ByName:
    by_name = True


class FirstFit(_ByName):
    """The first node by name, the first device there."""

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        return nodes.astype(float), fits.argmax(1)


class RandomFit(_ByName):
    """Any node that fits, each alike, and there any device that does."""

    def __init__(self, rng: Random) -> None:
        self._rng = np.random.default_rng(rng.randrange(1 << 30))

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        # A fresh number for each node at each look; the engine asks only for what changed, so all are asked again.
        column.stamp = -1
        return self._rng.random(len(nodes)), (self._rng.random(fits.shape) * fits).argmax(1)


class BestFit(_ByName):
    """Least weighted sum of what is left of CPU and GPU; among devices the one with least left."""

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        shape = column.shape
        cpu = (engine.cpu[nodes] - shape.cpu_milli) / _CPU
        gpu = (engine.level[nodes].sum(1, dtype=np.int64) - shape.compute * shape.devices) / _GPU
        return -np.floor(100 * (1 - 0.5 * cpu - 0.5 * gpu)), _tightest(engine, nodes, fits)


class DotProduct(_ByName):
    """Tetris turned to packing: least product of the demand with what a node and device have, both over the largest."""

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        shape = column.shape
        cpu = engine.cpu[nodes] / _CPU * (shape.cpu_milli / _CPU)
        if shape.devices != 1 or shape.compute == 100:
            gpu = engine.level[nodes].sum(1, dtype=np.int64) / _GPU * (shape.compute * shape.devices / _GPU)
            return -np.floor(100 * (1 - (cpu + gpu) / 2)), _tightest(engine, nodes, fits)
        gpu = engine.level[nodes] / _GPU * (shape.compute / _GPU)
        score = np.where(fits, 1 - (cpu[:, None] + gpu) / 2, -1.0)
        return -np.floor(100 * score.max(1)), score.argmax(1)


class Packing(_ByName):
    """GPU-packing of MLaaS: used devices before free ones on used nodes, before free nodes."""

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        shape = column.shape
        if shape.devices == 0:
            return np.zeros(len(nodes)), np.zeros(len(nodes), np.int8)
        level, whole = engine.level[nodes], engine.whole[nodes]
        free = (level == whole) & (whole > 0)
        ordered = np.sort(np.where(fits, level, 127), axis=1)[:, : shape.devices]
        opened = (ordered == 100).sum(1)
        used = 100 - ordered.sum(1) // 10
        score = np.where(opened > 0, np.maximum(50 - opened, 33), np.maximum(used, 50))
        count = free.sum(1)
        idle = count == (whole > 0).sum(1)
        return -np.where(idle, np.maximum(33 - count, count), score), _tightest(engine, nodes, fits)


class Clustering(_ByName):
    """GPU-clustering (Gandiva): nodes that hold the same GPU demand first, each class the fullest first."""

    def __init__(self) -> None:
        self._held: dict[int, dict[tuple[int, int], int]] = {}

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        shape = column.shape
        if shape.devices == 0:
            return np.zeros(len(nodes)), np.zeros(len(nodes), np.int8)
        kind = (shape.devices, int(shape.compute == 100))
        base = np.empty(len(nodes))
        for i, n in enumerate(nodes):
            held = self._held.get(int(n), {})
            base[i] = (75 if len(held) == 1 else 50) if held.get(kind) else 0 if held else 25
        fullness = np.floor(25 * (_GPU - engine.level[nodes].sum(1, dtype=np.int64)) / _GPU)
        return -(base + fullness), _tightest(engine, nodes, fits)

    def placed(self, node: int, kind: tuple[int, int]) -> None:
        """Note what a node holds."""
        held = self._held.setdefault(node, {})
        held[kind] = held.get(kind, 0) + 1


class FGD(_ByName):
    """FGD as published: the loss of usefulness through a sigmoid, rounded down to 0..100, the lowest name of equals.

    The mix is all of the trace, pods without a GPU among them; host memory plays no part in the measure.
    """

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._usefulness: Usefulness | None = None

    def evaluate(self, engine: Engine, column: Column, nodes: Array, fits: Array) -> tuple[Array, Array]:
        if self._usefulness is None:
            self._usefulness = Usefulness(engine, self._mix)
        loss = self._usefulness.loss(engine, column, nodes, fits)
        # Fragmentation after less before: what leaves the free pool is fragment no more.
        gained = column.shape.devices * column.shape.compute - loss
        score = np.floor(100 / (1 + np.exp(-gained / 100)))
        score = np.where(np.isfinite(loss), score, -1.0)
        return -score.max(1), score.argmax(1)


def _tightest(engine: Engine, nodes: Array, fits: Array) -> Array:
    return np.asarray(np.where(fits, engine.level[nodes], 127).argmin(1))
