"""/metrics of the admin port: the controller's own figures, and those of each gateway worker beside them.

The controller's figures are read from the facade when they are asked for, by a collector that no global registry knows.
A worker's page is joined as text: families of the same name are put together, and each sample gets a `worker` label.
Parsing the pages into objects would hold the controller's loop for a good part of a second in a large fleet.

`METRICS` is what the controller exports, so that docs/metrics.md is made from code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import exposition
from prometheus_client.core import GaugeMetricFamily, Metric

from tangram.control.facade import Facade
from tangram.control.views import DeviceView
from tangram.spec import Model

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MIB: Final = 1024 * 1024

#: (name, type, labels, help) of everything the controller exports.
METRICS: Final[Sequence[tuple[str, str, tuple[str, ...], str]]] = (
    (
        "autoscaler_desired_replicas",
        "gauge",
        ("model",),
        "Replicas a model should have, as decided last",
    ),
    (
        "autoscaler_ready_replicas",
        "gauge",
        ("model",),
        "Replicas of a model that answer their readiness probe",
    ),
    (
        "autoscaler_starting_replicas",
        "gauge",
        ("model",),
        "Replicas of a model that are placed and not ready yet",
    ),
    (
        "autoscaler_signal_replicas",
        "gauge",
        ("model", "signal"),
        "Replicas one signal alone asks for; absent while the signal is missing",
    ),
    (
        "packer_device_memory_bytes",
        "gauge",
        ("device", "kind"),
        "Memory of a device: total, reserve (never given out), requested (guaranteed to replicas), used (measured)",
    ),
    (
        "packer_device_compute_ratio",
        "gauge",
        ("device",),
        "Share of a device's compute that is given out, 0 to 1",
    ),
    (
        "packer_device_clients",
        "gauge",
        ("device",),
        "Replicas that hold a slice of a device",
    ),
    (
        "packer_device_healthy",
        "gauge",
        ("device",),
        "1 for a device that may take replicas, else 0",
    ),
    (
        "packer_stranded_memory_bytes",
        "gauge",
        ("device",),
        "Memory of a device that is not given out and that no declared model's slice could take",
    ),
    (
        "packer_oversold_devices",
        "gauge",
        (),
        "Devices whose guarantees exceed what they have; 0 unless something is wrong",
    ),
    (
        "controller_models",
        "gauge",
        (),
        "Models declared",
    ),
    (
        "controller_term",
        "gauge",
        (),
        "How many controllers were started on this state",
    ),
    (
        "controller_start_time_seconds",
        "gauge",
        (),
        "Unix time at which this controller started",
    ),
    (
        "controller_adopting",
        "gauge",
        (),
        "1 while a restarted controller is still finding its replicas, else 0",
    ),
    (
        "gateway_worker_up",
        "gauge",
        ("worker",),
        "1 for a connected gateway worker whose /metrics answered, else 0",
    ),
)


class ControllerCollector:
    """prometheus_client's Collector over a facade; `workers_up` is which workers' pages could be had."""

    def __init__(self, facade: Facade, workers_up: Mapping[int, bool]) -> None:
        self._facade = facade
        self._workers_up = workers_up

    def collect(self) -> Iterable[Metric]:
        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, _, labels, text in METRICS}

        def put(name: str, value: float, *labels: str) -> None:
            families[name].add_metric(labels, value)

        for model in self._facade.controller_metrics():
            put("autoscaler_desired_replicas", model.desired, model.name)
            put("autoscaler_ready_replicas", model.ready, model.name)
            put("autoscaler_starting_replicas", model.starting, model.name)
            for signal, replicas in model.signals:
                put("autoscaler_signal_replicas", replicas, model.name, signal)
        specs = self._facade.specs()
        for device in self._facade.devices():
            put("packer_device_memory_bytes", device.memory_total * _MIB, device.id, "total")
            put("packer_device_memory_bytes", device.memory_reserve * _MIB, device.id, "reserve")
            put("packer_device_memory_bytes", device.memory_requested * _MIB, device.id, "requested")
            if device.memory_used is not None:
                put("packer_device_memory_bytes", device.memory_used * _MIB, device.id, "used")
            put("packer_device_compute_ratio", device.compute_requested / 100, device.id)
            put("packer_device_clients", device.clients, device.id)
            put("packer_device_healthy", int(device.healthy), device.id)
            put("packer_stranded_memory_bytes", stranded_mib(device, specs) * _MIB, device.id)
        status = self._facade.status()
        put("packer_oversold_devices", len(status.oversold))
        put("controller_models", status.models)
        put("controller_term", status.term)
        put("controller_start_time_seconds", status.started_at)
        put("controller_adopting", int(status.adopting))
        for worker, up in sorted(self._workers_up.items()):
            put("gateway_worker_up", int(up), str(worker))
        return families.values()


def stranded_mib(device: DeviceView, models: Iterable[Model]) -> int:
    """MiB of a device that are not given out and that the slice of none of the models could take."""
    free = max(0, device.memory_total - device.memory_reserve - device.memory_requested)
    if device.healthy and device.clients < device.max_clients:
        for model in models:
            wanted = model.spec.slice
            allowed = wanted.device_selector.models
            if (
                wanted.memory.request <= free
                and not (wanted.whole and device.clients)
                and wanted.compute <= 100 - device.compute_requested
                and wanted.mechanism in device.mechanisms
                and (not allowed or device.model in allowed)
            ):
                return 0
    return free


def render(facade: Facade, worker_pages: Mapping[int, str | None]) -> str:
    """The whole page in Prometheus' text format; None stands for a worker whose page could not be had."""
    up = {worker: page is not None for worker, page in worker_pages.items()}
    own = exposition.generate_latest(ControllerCollector(facade, up)).decode()
    return join(own, {worker: page for worker, page in worker_pages.items() if page is not None})


#: A sample: name, labels with their braces (maybe), the rest. A label's value may hold any character but a bare quote.
_SAMPLE: Final = re.compile(
    r'([A-Za-z_:][A-Za-z0-9_:]*)(?:\{((?:[A-Za-z_][A-Za-z0-9_]*="(?:[^"\\]|\\.)*",?)*)\})?([ \t]+\S.*)'
)


def join(own: str, worker_pages: Mapping[int, str]) -> str:
    """One page of several, each family once, its HELP and TYPE first, workers' samples labelled by worker."""
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for page, label in ((own, ""), *((page, f'worker="{worker}"') for worker, page in sorted(worker_pages.items()))):
        for family, kind, line in _lines(page):
            samples.setdefault(family, [])
            if kind:
                heads.setdefault(family, {}).setdefault(kind, line)
            elif not label:
                samples[family].append(line)
            elif match := _SAMPLE.fullmatch(line):
                name, labels, rest = match.groups()
                joined = f"{labels.rstrip(',')},{label}" if labels else label
                samples[family].append(f"{name}{{{joined}}}{rest}")
    out: list[str] = []
    for family, lines in samples.items():
        out += heads.get(family, {}).values()
        out += lines
    return "\n".join(out) + "\n" if out else ""


def _lines(page: str) -> Iterator[tuple[str, str, str]]:
    """(family, HELP or TYPE or "" for a sample, line) of each line that says something."""
    family = ""
    for line in page.split("\n"):
        if line.startswith("#"):
            words = line.split(" ", 3)
            if len(words) > 2 and words[1] in ("HELP", "TYPE"):
                family = words[2]
                yield family, words[1], line
        elif line:
            name = re.split(r"[{\s]", line, maxsplit=1)[0]
            if not (family and name.startswith(family)):
                family = name
            yield family, "", line
