from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packer.inventory import Device
from tangram.core.convert import CORES_LABEL
from tangram.node.backend import StartError, StartOrder
from tangram.node.launch import order
from tangram.node.mechanisms import GivenSlice, Mechanisms
from tangram.spec import Model

VIRTUAL = Device("node-a/gpu-0", "node-a", "virtual", 8192, labels={CORES_LABEL: "2000"})
GPU = Device("GPU-1", "node-a", "NVIDIA H200", 143771, mechanisms=frozenset({"timeslice"}))


def start(model: Model, instance: str, port: int, devices: list[Device]) -> StartOrder:
    """The order as the controller makes it, for a slice that nothing has to be prepared for."""
    wanted = model.spec.slice
    mib = wanted.memory.effective_limit
    given = GivenSlice(wanted.mechanism.value, tuple(devices), wanted.compute, wanted.memory.request, mib)
    return order(model, instance, port, [d.id for d in devices], Mechanisms(Path("/none")).settings(given))


def model(runtime: dict[str, Any], **place: Any) -> Model:
    return Model.model_validate(
        {
            "apiVersion": "tangram.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": "digits"},
            "spec": {"runtime": runtime, "slice": {"memory": {"request": "64Mi"}, **place}},
        }
    )


EMBEDDED: dict[str, Any] = {"kind": "embedded", "model": "/models/digits.py", "workingDir": "/models"}
COMMAND: dict[str, Any] = {"kind": "command", "command": ["serve", "--at={host}:{port}", "{model}/{replica}", "{odd}"]}


def test_an_embedded_model_is_served_by_our_own_server() -> None:
    made = start(model(EMBEDDED, compute=25), "digits-a", 20001, [VIRTUAL])
    assert (made.instance, made.model, made.port) == ("digits-a", "digits", 20001)
    assert made.argv[0] == sys.executable
    assert made.argv[1:4] == ("-P", "-m", "tangram.node.runtimes.embedded")
    options = dict(zip(made.argv[4::2], made.argv[5::2], strict=True))
    assert options == {"--model": "/models/digits.py", "--name": "digits", "--host": "127.0.0.1", "--port": "20001"}
    assert made.working_dir == Path("/models")
    assert made.cpu_cores == 0.5
    assert made.revision == model(EMBEDDED, compute=25).revision


def test_a_command_gets_its_placeholders() -> None:
    made = start(model(COMMAND), "digits-a", 20001, [VIRTUAL])
    assert made.argv == ("serve", "--at=127.0.0.1:20001", "digits/digits-a", "{odd}")
    assert (made.working_dir, made.cpu_cores) == (None, None)


def test_readiness_is_as_declared() -> None:
    readiness = {"path": "/up", "periodSeconds": 3, "timeoutSeconds": 2, "failureThreshold": 5}
    made = start(model({**COMMAND, "readiness": readiness}), "a", 1, [VIRTUAL])
    assert (made.readiness_path, made.readiness_period_s, made.readiness_timeout_s) == ("/up", 3.0, 2.0)
    assert made.failure_threshold == 5


def test_the_environment_is_the_models_but_for_its_place_and_port() -> None:
    env = [
        {"name": "MODE", "value": "fast"},
        {"name": "PORT", "value": "80"},
        {"name": "PYTHONUNBUFFERED", "value": ""},
        {"name": "CUDA_VISIBLE_DEVICES", "value": "0,1,2,3"},
    ]
    made = start(model({**COMMAND, "env": env}, mechanism="timeslice"), "a", 20001, [GPU]).env
    assert (made["MODE"], made["PORT"], made["PYTHONUNBUFFERED"]) == ("fast", "20001", "")
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    plain = start(model(COMMAND), "a", 20001, [VIRTUAL]).env
    assert plain["PYTHONUNBUFFERED"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in plain


def test_programs_of_our_own_environment_are_found_last(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert start(model(COMMAND), "a", 1, [VIRTUAL]).env["PATH"] == f"/bin:/usr/bin:{own}"
    monkeypatch.setenv("PATH", f"{own}:/bin")
    assert start(model(COMMAND), "a", 1, [VIRTUAL]).env["PATH"] == f"{own}:/bin"


def test_what_cannot_run_here_says_so() -> None:
    with pytest.raises(
        StartError, match=r"model digits: runtime\.image runs on Kubernetes only; give runtime\.command"
    ):
        start(model({"kind": "command", "image": "ghcr.io/x/y:1"}), "a", 1, [VIRTUAL])
    with pytest.raises(StartError, match=r"slice\.mechanism 'hami'"):
        start(model(COMMAND, mechanism="hami"), "a", 1, [GPU])


def test_a_replica_of_several_devices_sees_them_all_in_order() -> None:
    gpus = [replace(GPU, id=f"GPU-{i}") for i in (7, 3, 5)]
    runtime = {**COMMAND, "command": ["vllm", "--tensor-parallel-size", "{devices}"]}
    made = start(model(runtime, mechanism="timeslice", devices=3), "a", 20001, gpus)
    assert made.env["CUDA_VISIBLE_DEVICES"] == made.env["TANGRAM_DEVICES"] == "GPU-7,GPU-3,GPU-5"
    assert made.argv == ("vllm", "--tensor-parallel-size", "3")


def test_virtual_devices_add_up() -> None:
    made = start(model(EMBEDDED, devices=2), "a", 20001, [VIRTUAL, replace(VIRTUAL, id="node-a/gpu-1")])
    assert made.cpu_cores == 4.0
    assert made.env["TANGRAM_DEVICES"] == "node-a/gpu-0,node-a/gpu-1"
    assert "CUDA_VISIBLE_DEVICES" not in made.env
    assert start(model(COMMAND), "a", 20001, [VIRTUAL]).argv[-1] == "{odd}"
