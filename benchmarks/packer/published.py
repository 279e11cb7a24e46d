"""The baselines beside what their authors published: mean GPU allocation at 130% load on the default trace.

Their workload differs from `inflation`'s in two ways. It is the trace's own pods and, up to 130%, copies of some of
them drawn at random, in random order; and pods ask for CPU and GPUs alone, so that host memory binds nobody. The
figures are those of the FGD paper's evaluation (Weng et al., USENIX ATC 2023), ten seeds of theirs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import mean
from typing import Any, Final

from benchmarks.packer.data import Trace, load, load_of
from benchmarks.packer.inflation import POLICIES, replay
from packer.mix import Shape

PUBLISHED: Final = {
    "random": 87.47,
    "dot-product": 90.85,
    "gpu-clustering": 91.88,
    "gpu-packing": 92.00,
    "best-fit": 93.08,
    "fgd": 95.39,
}
_APART: Final = 0.5


def with_copies(trace: Trace, percent: float, rng: Random) -> list[Shape]:
    """The trace's pods and copies of some until their GPU demand reaches percent of the capacity, shuffled."""
    pods = list(trace.pods)
    total = sum(load_of(p) for p in pods)
    while total < percent * trace.devices:
        pods.append(trace.pods[rng.randrange(len(trace.pods))])
        total += load_of(pods[-1])
    rng.shuffle(pods)
    return pods


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All baselines asked for."""
    seeds = options.seeds or 10
    trace = load(options.data, "default")
    known = {s: replace(s, host_memory_mib=0) for s in set(trace.pods)}
    trace = replace(trace, pods=tuple(known[s] for s in trace.pods))
    bars: dict[str, dict[str, Any]] = {}
    for policy in options.policy or list(PUBLISHED):
        found = [
            replay(trace, POLICIES[policy](trace, seed), with_copies(trace, 130, Random(seed)))[0]
            for seed in range(seeds)
        ]
        value, apart = mean(found), abs(mean(found) - PUBLISHED[policy])
        say(f"{policy:15} {value:6.2f}  published {PUBLISHED[policy]:6.2f}  {apart:.2f} apart (at most {_APART})")
        bars[policy] = {"value": round(value, 3), "bar": PUBLISHED[policy], "met": apart <= _APART}
    return {"seeds": seeds, "bars": bars}
