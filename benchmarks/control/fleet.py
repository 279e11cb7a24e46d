"""The fleet that the benchmark declares: models at zero to be woken, and one under load to be hurt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.local import free_ports
from tangram.spec import API_VERSION

COLD: Final = tuple(f"cold-{i}" for i in range(5))
STEADY: Final = "steady"
STEADY_REPLICAS: Final = 2
_SERVER: Final = Path(__file__).with_name("replica.py")


def _model(name: str, scaling: dict[str, Any], load_s: float, service_s: float) -> dict[str, Any]:
    command = ["python3", str(_SERVER), "{port}", str(load_s), str(service_s)]
    return {
        "apiVersion": API_VERSION,
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {
            "runtime": {"kind": "command", "command": command},
            "slice": {"memory": {"request": "64Mi"}, "compute": 5},
            "scaling": scaling,
        },
    }


def documents() -> list[dict[str, Any]]:
    """One device, five models at zero, and one of two replicas."""
    device = {"name": "gpu-0", "memory": "4Gi", "cores": 2}
    fleet = {"nodes": [{"name": "bench", "devices": [device]}]}
    return [
        {"apiVersion": API_VERSION, "kind": "Fleet", "metadata": {"name": "bench"}, "spec": fleet},
        _model(STEADY, {"minReplicas": STEADY_REPLICAS, "maxReplicas": STEADY_REPLICAS}, 0.0, 0.02),
        *(_model(name, {"minReplicas": 0, "maxReplicas": 1}, 0.5, 0.0) for name in COLD),
    ]


def write(path: Path) -> None:
    """As one YAML file (JSON is YAML)."""
    path.write_text("\n---\n".join(json.dumps(d) for d in documents()), encoding="utf-8")


def addresses() -> Sequence[str]:
    """`--listen` and `--admin` with two ports that are free at present."""
    ports = free_ports(2)
    return ["--listen", f"127.0.0.1:{ports[0]}", "--admin", f"127.0.0.1:{ports[1]}"]
