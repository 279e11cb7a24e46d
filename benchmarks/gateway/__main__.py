"""`python -m benchmarks.gateway [--quick] [--scenario NAME] [--peer NAME] [--rounds N] [--envoy PATH] [--json]`.

Needs wrk and a C compiler; a peer that is not installed is said and left out, and its bars are not met. Exit code 1 if
a bar is missed, 2 where nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.bars import verdict_lines
from benchmarks.gateway import peers, programs, scenarios, verdicts
from benchmarks.gateway.cost import divide, pinned
from benchmarks.gateway.scenarios import DEFAULT, DEFAULT_QUICK, FULL, QUICK, SCENARIOS, Bench
from benchmarks.gateway.verdicts import Outcome, Spread

#: What the proxies and the load may have open, where the system allows it.
_OPEN_FILES: Final = 16_384


def main() -> int:
    options = _options()
    out = sys.stderr if options.json else sys.stdout
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        plan = replace(plan, rounds=options.rounds, total_s=math.inf)
    cores = divide(os.sched_getaffinity(0))
    outcomes: dict[str, Outcome] = {}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tangram-bench-") as temporary,
            pinned(cores.load),
            Bench(Path(temporary), cores, plan, options.peer or peers.PEERS, options.envoy) as bench,
        ):
            chosen = options.scenario or (DEFAULT_QUICK if options.quick else DEFAULT)
            for name, outcomes[name] in scenarios.run(bench, chosen):
                print(*_table(name, outcomes[name]), sep="\n", file=out, flush=True)
            missing, native = bench.missing, bench.native
    except (programs.Missing, programs.Failed) as error:
        print(f"benchmarks.gateway: {error}", file=sys.stderr)
        return 2
    judged = verdicts.bars(outcomes)
    for text in missing.values():
        print(f"left out: {text}", file=out)
    print(f"native code: {'yes' if native else 'no'}", file=out)
    print(*verdict_lines(judged), sep="\n", file=out)
    void = verdicts.void(judged)
    if void:
        print(f"VOID: naive aiohttp cost less than {verdicts.NAIVE_OVER_NGINX:g} times nginx; no bar is met", file=out)
    result = {
        "benchmark": "gateway",
        "cores": {name: sorted(of) for name, of in asdict(cores).items()},
        "native": native,
        "void": void,
        "missing": missing,
        "scenarios": {name: _figures(outcome) for name, outcome in outcomes.items()},
        "bars": {name: asdict(bar) for name, bar in judged.items()},
    }
    print(json.dumps(result))
    return 0 if all(bar.met for bar in judged.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, in under 50 s")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="only this; may be repeated")
    parser.add_argument("--peer", action="append", choices=peers.PEERS, help="beside ours only this; may be repeated")
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds ({FULL.rounds}; quick: {QUICK.rounds})")
    parser.add_argument("--envoy", type=Path, help="the Envoy to measure, where it is not on the PATH")
    parser.add_argument("--json", action="store_true", help="nothing but the line of JSON on standard output")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds} is less than 1")
    if options.envoy is not None and not os.access(options.envoy, os.X_OK):
        parser.error(f"--envoy {options.envoy} is no program")
    return options


def _spreads(outcome: Outcome) -> dict[str, dict[str, Spread]]:
    return {
        who: {metric: found for metric, values in rounds.items() if (found := verdicts.spread(values)) is not None}
        for who, rounds in outcome.figures.items()
    }


def _over_nginx(outcome: Outcome) -> dict[str, Spread]:
    return {
        who: found
        for who in outcome.figures
        if who != peers.NGINX
        and "cpu_us" in outcome.figures[who]
        and (found := verdicts.ratio(outcome, "cpu_us", who, peers.NGINX)) is not None
    }


def _figures(outcome: Outcome) -> dict[str, Any]:
    figures: dict[str, Any] = {
        who: {metric: asdict(spread) for metric, spread in metrics.items()}
        for who, metrics in _spreads(outcome).items()
    }
    over = {who: asdict(spread) for who, spread in _over_nginx(outcome).items()}
    rounds = max((len(v) for of in outcome.figures.values() for v in of.values()), default=0)
    return {"rounds": rounds, "figures": figures, "cpu_over_nginx": over, "failed": outcome.failed}


def _table(name: str, outcome: Outcome) -> list[str]:
    lines = [f"{name}: median (least to greatest)"]
    over: Mapping[str, Spread] = _over_nginx(outcome)
    for who, metrics in _spreads(outcome).items():
        cells = [f"{metric} {_text(spread)}" for metric, spread in metrics.items()]
        if who in over:
            cells.append(f"CPU over nginx {_text(over[who])}")
        lines.append(f"  {who:16} {'   '.join(cells)}")
    return lines


def _text(spread: Spread) -> str:
    return f"{spread.median:.4g} ({spread.min:.4g} to {spread.max:.4g})"


if __name__ == "__main__":
    sys.exit(main())
