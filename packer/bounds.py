"""A proven bound on zero-refusal load: no placer admits more of a mix without refusing anything.

The linear programme spreads a volume of the mix over classes of nodes alike. Host CPU and memory are pooled within a
class; devices are filled by patterns (which slices lie together on one device), found by column generation with a
knapsack as pricing problem; whole-device shapes take whole devices of nodes that have enough of them. Every packing of
the fleet is a solution of it, so its optimum is an upper bound, in percent of the fleet's GPU capacity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from packer.engine import Rack, accepts, share
from packer.mix import Mix, Shape
from packer.signatures import canonical


class SolverMissing(RuntimeError):
    """SciPy is not installed; the extra `solver` brings it."""


@dataclass(frozen=True, slots=True)
class Bound:
    load: float
    """Percent of the fleet's devices."""
    volume: float
    """Shapes admitted in all."""
    prices: dict[Shape, float]
    """Dual of each shape's demand."""


def zero_refusal(racks: Iterable[Rack] | Counter[Rack], mix: Mix) -> Bound:
    """Solve the programme to optimality (HiGHS). Shapes that fit no node even when empty are left out.

    Raises SolverMissing without SciPy.
    """
    classes = Counter(racks)
    # Alike fleets are the same programme whatever the order of their nodes.
    kinds = sorted(classes, key=canonical)
    mix = possible(kinds, mix)
    total = sum(mix.weights)
    weights = np.array(mix.weights) / total
    # On a node of different devices the least share of any: a relaxation, so that the bound stays one.
    cut = {
        (k, t): min((share(b, s) for b in r.bays if accepts(b, s)), default=101)
        for k, r in enumerate(kinds)
        for t, s in enumerate(mix.shapes)
        if r.bays
    }
    sizes = sorted({cut[k, t] for k, t in cut if mix.shapes[t].devices == 1 and cut[k, t] <= 100})
    patterns: list[dict[int, int]] = [{s: 100 // s} for s in sizes]
    while True:
        value, duals, worth = _master(kinds, classes, mix, weights, sizes, patterns, cut)
        fresh = []
        for k in range(len(kinds)):
            # Worth of a slice of each size in class k against the worth of an empty device.
            best, pattern = _knapsack({s: worth[k][s] for s in sizes})
            if best > worth[k]["device"] + 1e-7 and pattern not in patterns and pattern not in fresh:
                fresh.append(pattern)
        if not fresh:
            break
        patterns += fresh
    load = sum(w * s.compute * s.devices for s, w in zip(mix.shapes, weights, strict=True)) * value
    devices = sum(len(r.bays) * c for r, c in classes.items())
    return Bound(load / devices, value, dict(zip(mix.shapes, duals, strict=True)))


def possible(racks: Iterable[Rack], mix: Mix) -> Mix:
    """The mix without shapes that no node could ever take."""
    kinds = set(racks)
    return Mix.of({s: w for s, w in zip(mix.shapes, mix.weights, strict=True) if any(_takes(r, s) for r in kinds)})


def _takes(rack: Rack, shape: Shape) -> bool:
    right = sum(accepts(b, shape) and share(b, shape) <= 100 for b in rack.bays) if shape.devices else 0
    return (
        shape.devices <= right and shape.cpu_milli <= rack.cpu_milli and shape.host_memory_mib <= rack.host_memory_mib
    )


def _knapsack(worth: dict[int, float]) -> tuple[float, dict[int, int]]:
    best, last = [0.0] * 101, [0] * 101
    for level in range(1, 101):
        best[level], last[level] = best[level - 1], 0
        for size, value in worth.items():
            if size <= level and best[level - size] + value > best[level] + 1e-12:
                best[level], last[level] = best[level - size] + value, size
    pattern: dict[int, int] = {}
    level = 100
    while level > 0:
        if last[level]:
            pattern[last[level]] = pattern.get(last[level], 0) + 1
            level -= last[level]
        else:
            level -= 1
    return best[100], pattern


def _master(
    kinds: list[Rack],
    classes: Counter[Rack],
    mix: Mix,
    weights: Any,
    sizes: list[int],
    patterns: list[dict[int, int]],
    cut: dict[tuple[int, int], int],
) -> tuple[float, list[float], list[dict[Any, float]]]:
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_matrix
    except ImportError:
        raise SolverMissing("SciPy is not installed; install the extra 'solver'") from None
    rows: list[int] = []
    cols: list[int] = []
    vals: list[float] = []
    column = 1  # 0 is the volume
    shapes = len(mix.shapes)
    size_row = {(k, s): shapes + k * (len(sizes) + 3) + i for k in range(len(kinds)) for i, s in enumerate(sizes)}
    rest = {k: shapes + k * (len(sizes) + 3) + len(sizes) for k in range(len(kinds))}
    count = shapes + len(kinds) * (len(sizes) + 3)
    limit = np.zeros(count)

    def put(row: int, value: float) -> None:
        rows.append(row)
        cols.append(column)
        vals.append(value)

    for t in range(shapes):
        rows.append(t)
        cols.append(0)
        vals.append(weights[t])
    for k, rack in enumerate(kinds):
        n = classes[rack]
        limit[rest[k]], limit[rest[k] + 1], limit[rest[k] + 2] = (
            n * len(rack.bays),
            n * rack.cpu_milli,
            n * rack.host_memory_mib,
        )
        for t, s in enumerate(mix.shapes):
            if not _takes(rack, s):
                continue
            put(t, -1.0)
            if s.devices == 1:
                put(size_row[k, cut[k, t]], 1.0)
            elif s.devices > 1:
                put(rest[k], s.devices)
            put(rest[k] + 1, s.cpu_milli)
            put(rest[k] + 2, s.host_memory_mib)
            column += 1
        for pattern in patterns:
            for size, times in pattern.items():
                put(size_row[k, size], -times)
            put(rest[k], 1.0)
            column += 1
    a = coo_matrix((vals, (rows, cols)), shape=(count, column)).tocsr()
    cost = np.zeros(column)
    cost[0] = -1.0
    solved = linprog(cost, A_ub=a, b_ub=limit, method="highs")
    if solved.status:
        raise RuntimeError(f"the bound's programme was not solved: {solved.message}")
    duals = -solved.ineqlin.marginals
    worth: list[dict[Any, float]] = []
    for k in range(len(kinds)):
        values: dict[Any, float] = {s: float(duals[size_row[k, s]]) for s in sizes}
        values["device"] = float(duals[rest[k]])
        values["cpu"] = float(duals[rest[k] + 1])
        values["ram"] = float(duals[rest[k] + 2])
        worth.append(values)
    return -float(solved.fun), [float(d) for d in duals[:shapes]], worth
