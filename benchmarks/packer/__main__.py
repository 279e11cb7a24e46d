"""`python -m benchmarks.packer {inflation|published|churn|small|mig|latency}`: a table, and last one line of JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

# One core: threads of the linear algebra library cost more than they bring at these sizes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.packer", description=__doc__)
    parser.add_argument("benchmark", choices=("inflation", "published", "churn", "small", "mig", "latency"))
    parser.add_argument("--data", type=Path, help="folder with the trace (node and pod lists)")
    parser.add_argument("--trace", nargs="+", help="traces by name; all that have a reference by default")
    parser.add_argument("--seeds", type=int, help="how many seeds")
    parser.add_argument("--policy", nargs="+", help="policies by name; all by default")
    parser.add_argument("--arrivals", type=int, help="churn: arrivals in a run")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    options = parser.parse_args()
    if options.benchmark in ("inflation", "published", "churn", "latency") and options.data is None:
        parser.error(f"{options.benchmark} needs --data, the folder of the trace")
    module = importlib.import_module(f"benchmarks.packer.{options.benchmark}")

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    result = module.run(options, say)
    print(json.dumps({"benchmark": options.benchmark, **result}, default=lambda v: v.item()))
    return 0 if all(b["met"] for b in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
