"""python -m benchmarks.autoscaler --data DIR [--quick] [--case NAME ...] [--seeds N] [--first-seed N] [--json]

Runs the twelve cells with the library's policy and the baselines, then the scenarios, and compares with the bars.
With --json the last line is one JSON object with `cells` and `bars: {name: {value, bar, met}}`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from autoscaler.baselines import Hpa, Kpa, Ray, Threshold
from autoscaler.replay import Ours
from autoscaler.simulate import View, Workload, draw
from benchmarks.autoscaler import quota, scenarios
from benchmarks.autoscaler.cells import CASES, load
from benchmarks.autoscaler.scenarios import Bar

SCENARIOS = ("targets", "drift", "faults", "step", "timers", "quota", "scale")


def _policies(work: Workload, start_s: float) -> dict[str, Callable[[View], int]]:
    return {
        "ours": Ours(scenarios.policy(work), start_s),
        "hpa70": Hpa(0.7 * work.capacity),
        "kpa-rps70": Kpa(0.7 * work.capacity, "rps"),
        "kpa-conc70": Kpa(0.7 * work.slots, "concurrency"),
        "ray50": Ray(0.5 * work.slots),
        "threshold70": Threshold(0.7 * work.capacity),
    }


def _cells(data: Path, cells: dict[str, tuple[int, ...]], seeds: range, others: tuple[str, ...]) -> list[Any]:
    rows = []
    for name, starts in cells.items():
        work = load(name, data)
        figures: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for seed in seeds:
            requests = draw(work, np.random.default_rng(seed))
            for start_s in starts:
                for which, scaler in _policies(work, start_s).items():
                    # The rest of the baselines are there to see that the simulator is right: one run is enough.
                    if which != "ours" and which not in (others if seed == seeds[0] else others[:2]):
                        continue
                    outcome = scenarios.run(work, requests, scaler, start_s)
                    figure = outcome.cost / CASES[name].reference[start_s], outcome.violation_share
                    figures.setdefault((start_s, which), []).append(figure)
        for (start_s, which), runs in figures.items():
            cost, late = mean(c for c, _ in runs), mean(v for _, v in runs)
            published = CASES[name].published[start_s].get(which)
            rows.append(
                {
                    "case": name,
                    "start_s": start_s,
                    "policy": which,
                    "cost": round(cost, 3),
                    "violations": round(late, 3),
                    "seeds": len(runs),
                    "published": published,
                }
            )
            near = f"   published {published[0]:.2f} / {published[1]:.2f}" if published else ""
            print(f"{name:6} {start_s:3} s  {which:12} {cost:5.2f} / {late:5.2f}{near}", flush=True)
    return rows


def _cell_bars(rows: list[Any]) -> dict[str, Bar]:
    ours = [row for row in rows if row["policy"] == "ours"]
    cost, late = mean(r["cost"] for r in ours), mean(r["violations"] for r in ours)
    good = 100.0 * sum(r["violations"] <= 1.0 for r in ours) / len(ours)
    beaten = [
        f"{r['case']} {r['start_s']} s by {o['policy']}"
        for r in ours
        for o in rows
        if (o["case"], o["start_s"]) == (r["case"], r["start_s"])
        and o["policy"] in ("hpa70", "kpa-rps70")
        and o["cost"] < r["cost"]
        and o["violations"] < r["violations"]
    ]
    return {
        "mean cost over the reference": Bar(round(cost, 3), "<= 1.35 (aim 1.25)", cost <= 1.35),
        "mean violations, percent": Bar(round(late, 3), "<= 1.5 (aim 1.0)", late <= 1.5),
        "cells with at most 1% violations, percent": Bar(round(good, 1), ">= 75 (aim 90)", good >= 75.0),
        "cells where HPA 70 or KPA-rps 70 is better in both": Bar(beaten, "none", not beaten),
    }


def _all_seeds(step: Callable[[int], dict[str, Bar]], seeds: range) -> dict[str, Bar]:
    """The bars of every seed, met where all are."""
    runs = {seed: step(seed) for seed in seeds}
    if len(runs) == 1:
        return runs[seeds[0]]
    return {
        name: Bar(
            {f"seed {seed}": found[name].value for seed, found in runs.items()},
            bar.bar,
            all(found[name].met for found in runs.values()),
        )
        for name, bar in runs[seeds[0]].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.autoscaler", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the traces")
    parser.add_argument("--quick", action="store_true", help="a part of it, in under 50 s")
    parser.add_argument("--case", action="append", choices=[*CASES, *SCENARIOS], help="only this; may be repeated")
    parser.add_argument("--seeds", type=int, default=None, help="runs of each cell and scenario (5; quick: 1)")
    parser.add_argument("--first-seed", type=int, default=1, help="of these runs (1)")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    given = parser.parse_args()
    quick, data, first = given.quick, given.data, given.first_seed
    chosen = given.case or [*CASES, *SCENARIOS]
    cases = [name for name in CASES if name in chosen]
    seeds = given.seeds or (1 if quick else 5)
    rows: list[Any] = []
    bars: dict[str, Bar] = {}
    if cases:
        others = ("hpa70", "kpa-rps70") if quick else ("hpa70", "kpa-rps70", "kpa-conc70", "ray50", "threshold70")
        cells = dict.fromkeys(cases, (5, 30, 90))
        if quick and given.case is None:
            cells = {"conv": (5, 30, 90), "aze3": (30,)}
        rows = _cells(data, cells, range(first, first + seeds), others)
        bars |= _cell_bars(rows)
    steps: dict[str, Callable[[int], dict[str, Bar]]] = {
        "targets": lambda seed: scenarios.wrong_targets(data, seed, quick=quick),
        "drift": lambda seed: scenarios.drift(data, seed, quick=quick),
        "faults": lambda seed: scenarios.faults(data, seed, quick=quick),
        "step": lambda seed: scenarios.step(seed, quick=quick),
        "timers": lambda seed: scenarios.timers(seed, quick=quick),
        "quota": lambda seed: quota.shared_quota(seed, quick=quick),
    }
    for name, step in steps.items():
        if name in chosen:
            bars |= _all_seeds(step, range(first, first + seeds))
    if "scale" in chosen:
        bars |= scenarios.thousand_models(quick=quick)
    for name, bar in bars.items():
        print(f"{'met   ' if bar.met else 'MISSED'} {name}: {bar.value} (bar: {bar.bar})", flush=True)
    if given.json:
        print(json.dumps({"cells": rows, "bars": {name: asdict(bar) for name, bar in bars.items()}}))


if __name__ == "__main__":
    main()
