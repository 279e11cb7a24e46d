"""The production trace of the FGD paper: nodes and pods as the packer's racks and shapes."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from packer.engine import Bay, Rack
from packer.mix import Mix, Shape


@dataclass(frozen=True, slots=True)
class Trace:
    """One pod list on the fleet it was made for."""

    name: str
    racks: tuple[Rack, ...]
    """In the order of the nodes' names."""
    pods: tuple[Shape, ...]

    @property
    def devices(self) -> int:
        """GPUs in the fleet."""
        return sum(len(r.bays) for r in self.racks)

    def mix(self) -> Mix:
        """How often the trace asks each shape."""
        return Mix.of(Counter(self.pods))


def load(folder: Path, name: str) -> Trace:
    """Read a trace by name, for example "default"; FileNotFoundError names what is there."""
    nodes, pods = folder / "openb_node_list_gpu_node.csv", folder / f"openb_pod_list_{name}.csv"
    if not pods.is_file():
        known = ", ".join(sorted(p.stem.removeprefix("openb_pod_list_") for p in folder.glob("openb_pod_list_*.csv")))
        raise FileNotFoundError(f"trace {name!r}: {pods} is not a file; {folder} holds {known or 'no traces'}")
    with nodes.open() as lines:
        rows = sorted(csv.DictReader(lines), key=lambda r: r["sn"])
    racks = tuple(
        Rack(int(r["cpu_milli"]), int(r["memory_mib"]), tuple(Bay(r["model"]) for _ in range(int(r["gpu"]))))
        for r in rows
    )
    with pods.open() as lines:
        known: dict[Shape, Shape] = {}
        shapes = tuple(known.setdefault(s, s) for s in map(_shape, csv.DictReader(lines)))
    return Trace(name, racks, shapes)


def _shape(row: dict[str, str]) -> Shape:
    milli = int(row["gpu_milli"])
    if milli % 10:
        raise ValueError(f"gpu_milli: {milli} is no whole percent; the packer counts compute in percent")
    models = frozenset(m for m in (row.get("gpu_spec") or "").split("|") if m)
    return Shape(
        compute=milli // 10,
        devices=int(row["num_gpu"]),
        cpu_milli=int(row["cpu_milli"]),
        host_memory_mib=int(row["memory_mib"]),
        device_models=models,
    )


def load_of(shape: Shape) -> int:
    """GPU demand in percent of one device."""
    return shape.compute * shape.devices


def resampled(trace: Trace, percent: float, rng: Random) -> list[Shape]:
    """Pods drawn with replacement until their GPU demand reaches percent of the capacity."""
    pool = list(trace.pods)
    rng.shuffle(pool)
    goal, total, drawn = percent * trace.devices, 0, []
    while total < goal:
        shape = pool[rng.randrange(len(pool))]
        drawn.append(shape)
        total += load_of(shape)
    return drawn
