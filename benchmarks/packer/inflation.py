"""The FGD paper's evaluation: pods drawn to 130% of the GPU capacity, one after another, what does not fit is dropped.

Reported, as means over seeds: GPUs allocated at the end in percent, and the load that had arrived at the first refusal
of any pod. The bound is the linear programme's, for which pods that no node could ever take are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from random import Random
from statistics import mean
from typing import Any, Final

from benchmarks.packer.baselines import FGD, BestFit, Clustering, DotProduct, FirstFit, Packing, RandomFit
from benchmarks.packer.data import Trace, load, load_of, resampled
from packer.adaptive import Adaptive
from packer.bounds import zero_refusal
from packer.engine import Engine, Policy
from packer.mix import Shape

TRACES: Final = (
    "default",
    "gpushare40",
    "gpushare60",
    "gpushare80",
    "gpushare100",
    "multigpu50",
    "cpu250",
    "gpuspec33",
)
#: Least share of FGD's gap to the bound at first refusal that must be closed.
CLOSED: Final = {"default": 30, "gpushare40": 50, "gpushare60": 50, "gpushare80": 50, "gpushare100": 65}
NO_EARLIER: Final = ("gpuspec33", "cpu250")
POLICIES: Final[dict[str, Callable[[Trace, int], Policy]]] = {
    "random": lambda trace, seed: RandomFit(Random(seed)),
    "first-fit": lambda trace, seed: FirstFit(),
    "best-fit": lambda trace, seed: BestFit(),
    "dot-product": lambda trace, seed: DotProduct(),
    "gpu-packing": lambda trace, seed: Packing(),
    "gpu-clustering": lambda trace, seed: Clustering(),
    "fgd": lambda trace, seed: FGD(trace.mix()),
    "adaptive": lambda trace, seed: Adaptive(trace.mix()),
}
RIVALS: Final = ("first-fit", "best-fit", "fgd")


def replay(trace: Trace, policy: Policy, pods: Sequence[Shape]) -> tuple[float, float]:
    """(final allocation, load at the first refusal), in percent of the fleet's devices."""
    engine = Engine(trace.racks, policy)
    arrived = placed = 0
    first: float | None = None
    capacity = trace.devices
    for key, shape in enumerate(pods):
        spot = engine.best(shape)
        if spot is None:
            if first is None:
                first = arrived / capacity
        else:
            engine.take(shape, spot, key)
            placed += load_of(shape)
            if isinstance(policy, Clustering) and shape.devices:
                policy.placed(spot.node, (shape.devices, int(shape.compute == 100)))
        arrived += load_of(shape)
    return placed / capacity, arrived / capacity if first is None else first


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All traces and policies asked for."""
    seeds = options.seeds or 10
    names = options.policy or list(POLICIES)
    traces: dict[str, Any] = {}
    bars: dict[str, dict[str, Any]] = {}
    for name in options.trace or TRACES:
        trace = load(options.data, name)
        cap = zero_refusal(trace.racks, trace.mix()).load
        say(f"{name}: bound {cap:.2f}")
        rows: dict[str, dict[str, float]] = {}
        for policy in names:
            runs = [
                replay(trace, POLICIES[policy](trace, seed), resampled(trace, 130, Random(seed)))
                for seed in range(seeds)
            ]
            rows[policy] = {"final": mean(r[0] for r in runs), "first_refusal": mean(r[1] for r in runs)}
            say(f"  {policy:15} final {rows[policy]['final']:6.2f}  first refusal {rows[policy]['first_refusal']:6.2f}")
        traces[name] = {"bound": cap, "policies": rows}
        if "adaptive" in rows and all(r in rows for r in RIVALS):
            bars |= _bars(name, cap, rows)
    for bar, entry in bars.items():
        say(f"{'met ' if entry['met'] else 'MISS'} {bar}: {entry['value']:.2f} (bar {entry['bar']:.2f})")
    return {"seeds": seeds, "traces": traces, "bars": bars}


def _bars(name: str, cap: float, rows: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    ours = rows["adaptive"]
    found: dict[str, dict[str, Any]] = {}

    def bar(what: str, value: float, least: float) -> None:
        found[f"{name} {what}"] = {"value": round(value, 3), "bar": round(least, 3), "met": value >= least}

    bar("final allocation", ours["final"], max(rows[r]["final"] for r in RIVALS) - 0.1)
    fgd = rows["fgd"]["first_refusal"]
    if name in CLOSED:
        bar("gap closed", 100 * (ours["first_refusal"] - fgd) / (cap - fgd), CLOSED[name])
    if name in NO_EARLIER:
        bar("first refusal", ours["first_refusal"], max(rows[r]["first_refusal"] for r in rows if r != "adaptive"))
    return found
