"""What is asked for, names left out: a `Shape` is what decides where a request fits, a `Mix` is what to expect.

An expected mix says how often each shape will be asked for: what the autoscaler's models would ask next, else what was
asked lately. Every measure of usefulness in the packer is taken against a mix; weights are relative.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packer.inventory import SliceRequest


@dataclass(frozen=True, slots=True)
class Shape:
    """A request without its name. `devices` slices alike, each on a Device of its own, all on one Node."""

    compute: int = 0
    """Percent of each device."""
    memory_mib: int = 0
    """MiB of each device."""
    devices: int = 1
    """0 asks for the host alone."""
    cpu_milli: int = 0
    host_memory_mib: int = 0
    device_models: frozenset[str] = frozenset()
    """Empty is any."""
    labels: frozenset[tuple[str, str]] = frozenset()
    mechanism: str = ""
    """Empty is any."""
    whole: bool = False
    """All of each device: its usable memory, which is `memory_mib` at least, and nobody beside it."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Expected demand: distinct shapes and their relative weights, in a fixed order."""

    shapes: tuple[Shape, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, weighted: Mapping[Shape, float]) -> Mix:
        """The mix in its canonical order, so that whoever counts, and in whatever order, gets the same Mix."""
        kept = sorted(((s, w) for s, w in weighted.items() if w > 0), key=lambda item: (-item[1], _key(item[0])))
        return cls(tuple(s for s, _ in kept), tuple(float(w) for _, w in kept))

    @classmethod
    def recent(cls, requests: Iterable[SliceRequest]) -> Mix:
        """The mix of what was asked (each request counts once)."""
        counts: dict[Shape, float] = {}
        for request in requests:
            shape = shape_of(request)
            counts[shape] = counts.get(shape, 0.0) + 1.0
        return cls.of(counts)


def shape_of(request: SliceRequest) -> Shape:
    """The request without its names."""
    return Shape(
        compute=request.compute,
        memory_mib=request.memory_mib,
        devices=request.devices,
        cpu_milli=request.cpu_milli,
        host_memory_mib=request.host_memory_mib,
        device_models=request.device_models,
        labels=frozenset(request.labels.items()),
        mechanism=request.mechanism,
        whole=request.whole,
    )


def _key(shape: Shape) -> tuple[object, ...]:
    return (
        shape.devices,
        shape.compute,
        shape.memory_mib,
        shape.cpu_milli,
        shape.host_memory_mib,
        sorted(shape.device_models),
        sorted(shape.labels),
        shape.mechanism,
        shape.whole,
    )
