"""`python -m benchmarks.control [--only footprint|coldstart|kills|division] [--json]`

The exit code is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import local
from benchmarks.bars import Bar, verdict_lines
from benchmarks.control import coldstart, division, fleet, footprint, kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control")
    parser.add_argument("--only", choices=("footprint", "coldstart", "kills", "division"), help="measure this alone")
    parser.add_argument("--json", action="store_true", help="nothing but the line of JSON on standard output")
    options = parser.parse_args()
    out = sys.stderr if options.json else sys.stdout
    figures: dict[str, Any] = {}
    bars: dict[str, Bar] = {}

    def take(name: str, measured: tuple[dict[str, Any], dict[str, Bar]]) -> None:
        figures[name], more = measured
        bars.update(more)
        print(f"{name}: {json.dumps(figures[name])}", *verdict_lines(more), sep="\n", file=out, flush=True)

    def wanted(name: str) -> bool:
        return options.only in (None, name)

    if wanted("division"):
        take("division", division.measure())
    try:
        with tempfile.TemporaryDirectory(prefix="tangram-bench-") as temporary:
            folder = Path(temporary)
            if wanted("footprint"):
                take("footprint", footprint.measure(folder))
            if wanted("coldstart") or wanted("kills"):
                state, log, file = folder / "state", folder / "up.log", folder / "fleet.yaml"
                fleet.write(file)
                arguments = [str(file), *fleet.addresses()]
                with local.running(state, log, *arguments) as admin:
                    if wanted("coldstart"):
                        take("coldstart", coldstart.measure(admin))
                    if wanted("kills"):
                        take("kills", kills.measure(admin, state, log, arguments))
    except local.StartFailed as error:
        print(f"benchmarks.control: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"benchmark": "control", **figures, "bars": {name: asdict(bar) for name, bar in bars.items()}}))
    return 0 if all(bar.met for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
