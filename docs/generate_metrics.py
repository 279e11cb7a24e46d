"""Writes docs/metrics.md from the tables of metrics in the code: `python docs/generate_metrics.py [--check]`.

With --check nothing is written; the exit code is 1 and a line says so when the file is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import gateway.metrics
import tangram.control.metrics

TARGET = Path(__file__).with_name("metrics.md")
Row = tuple[str, str, Sequence[str], str]

HEAD = """# Metrics

Generated from the code by `python docs/generate_metrics.py`; a test keeps it up to date.

Every gateway worker serves its own metrics on its admin port (`/metrics`); the controller's admin address serves its
own figures and those of all workers together, so one scrape of it sees everything. Units are base units: seconds,
bytes, requests. Labels hold only names that operators gave (models, replicas, devices) and fixed words (codes,
signals, kinds): never a part of a request, never a key. A model nobody declared makes no series.
"""


def table(rows: Iterable[Row]) -> str:
    """A Markdown table, by name of the metric."""
    lines = ["| name | type | labels | what it says |", "|---|---|---|---|"]
    for name, kind, labels, said in sorted(rows):
        named = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {kind} | {named} | {said.rstrip('.').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def render() -> str:
    """The whole file."""
    sections = (("Gateway worker", gateway.metrics.METRICS), ("Controller", tangram.control.metrics.METRICS))
    return HEAD + "".join(f"\n## {title}\n\n{table(rows)}\n" for title, rows in sections)


def main(arguments: Sequence[str]) -> int:
    text = render()
    if "--check" not in arguments:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET} is out of date; run python docs/generate_metrics.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
