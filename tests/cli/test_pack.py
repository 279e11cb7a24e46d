from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangram.cli import pack

Tangram = Callable[..., Any]


@pytest.fixture
def file(fakes: Any, tmp_path: Path) -> str:
    devices = [{"name": f"gpu-{i}", "memory": "1Gi", "cores": 1} for i in range(2)]
    fleet = {
        "apiVersion": "tangram.dev/v1alpha1",
        "kind": "Fleet",
        "metadata": {"name": "local"},
        "spec": {"nodes": [{"name": "node-a", "devices": devices}]},
    }
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump_all([fleet, fakes.model_document()]))
    return "fleet.yaml"


def test_a_placement_without_anything_running(tangram: Tangram, file: str) -> None:
    ran = tangram("pack", file, "--models", "digits=3")
    assert ran.code == 0
    for part in ("digits-2", "node-a/gpu-1", "compute", "WOULD STILL FIT", "free"):
        assert part in ran.out
    view = pack.pack(Path(file), {"digits": 3})
    assert max(map(len, pack.text(view, 80).splitlines())) <= 80


def test_as_data(tangram: Tangram, file: str) -> None:
    view = json.loads(tangram("pack", file, "--models", "digits=3", "-o", "json").out)
    assert len(view["replicas"]) == 3
    assert {r["device"] for r in view["replicas"]} == {"node-a/gpu-0", "node-a/gpu-1"}
    assert sum(d["memoryRequested"] for d in view["devices"]) == 3 * 128
    assert view["room"] == {"digits": 7}


def test_what_does_not_fit_says_why(tangram: Tangram, file: str) -> None:
    ran = tangram("pack", file, "--models", "digits=12")
    assert ran.code == 0
    assert "No place:" in ran.out
    assert "compute" in ran.out.partition("No place:")[2]


@pytest.mark.parametrize(
    ("models", "said"),
    [("digits", "is not NAME=COUNT"), ("digits=x", "'digits=x'"), ("digits=1,digits=2", "twice"), ("nope=1", "'nope'")],
)
def test_bad_counts(tangram: Tangram, file: str, models: str, said: str) -> None:
    ran = tangram("pack", file, "--models", models)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_a_file_without_a_fleet(tangram: Tangram, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(fakes.model_document()))
    ran = tangram("pack", "models.yaml")
    assert ran.code == 2
    assert "declares no Fleet" in ran.err


def test_a_model_of_several_devices(tangram: Tangram, fakes: Any, tmp_path: Path) -> None:
    devices = [{"name": f"gpu-{i}", "memory": "1Gi", "cores": 1} for i in range(4)]
    links = [{"devices": ["gpu-0", "gpu-2"], "nvlinks": 2}]
    fleet: dict[str, Any] = {"apiVersion": "tangram.dev/v1alpha1", "kind": "Fleet", "metadata": {"name": "f"}}
    fleet["spec"] = {"nodes": [{"name": "node-a", "devices": devices, "links": links}]}
    document = fakes.model_document()
    document["spec"]["slice"] = {"memory": {"request": "128Mi"}, "devices": 2}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump_all([fleet, document]))
    view = json.loads(tangram("pack", "fleet.yaml", "-o", "json").out)
    (replica,) = view["replicas"]
    assert (set(replica["devices"]), replica["memory"]) == ({"node-a/gpu-0", "node-a/gpu-2"}, 2048)
    assert "2 devices joined by 2 NVLinks" in replica["why"]
    assert view["room"] == {"digits": 1}
    text = tangram("pack", "fleet.yaml", "--models", "digits=3").out
    assert "2x100%" in text and "node-a/gpu-0,gpu-2" in text and "4 whole devices" in text
    assert "No place:" in text
