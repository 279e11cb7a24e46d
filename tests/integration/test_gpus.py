"""GPUs shared by MPS and cut by MIG, as far as that can be without one.

NVML and the control program of MPS are stand-ins (gpus/) that keep the driver's rules; all else is as a user has it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tangram.node.processes import Found, find_processes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

GPUS = Path(__file__).with_name("gpus")
#: Attaches to the MPS daemon that it is told of, as CUDA does when the first context is made.
MODEL = """
import os, pathlib, socket
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

class Who(Model):
    inputs = [Tensor("delay_ms", "INT32", (1,))]
    outputs = [Tensor("pid", "INT32", (1,))]

    def load(self):
        pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
        if pipes and not pathlib.Path("loner").exists():
            self.daemon = socket.socket(socket.AF_UNIX)
            self.daemon.connect(os.path.join(pipes, "clients"))
            self.daemon.sendall(str(os.getpid()).encode())

    def predict(self, inputs):
        return {"pid": np.array([os.getpid()], np.int32)}
"""


def document(name: str, slice_: str, replicas: int = 1) -> str:
    return f"""
---
apiVersion: tangram.dev/v1alpha1
kind: Model
metadata: {{name: {name}}}
spec:
  runtime: {{model: who.py, terminationGracePeriodSeconds: 3}}
  slice: {slice_}
  scaling: {{minReplicas: {replicas}, maxReplicas: 4}}
"""


BY_MPS = "{memory: {request: 1Gi, limit: 2Gi}, compute: 30, mechanism: mps}"


@pytest.fixture
def machine(installation: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONPATH", f"{GPUS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{GPUS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GPUS", str(installation.folder / "gpus.json"))
    yield installation


def start(machine: Any, *models: str) -> None:
    machine.write(*models, fleet="")
    (machine.folder / "who.py").write_text(MODEL)
    machine.up()


def environment(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(v.partition("=")[::2] for v in raw.split("\0") if v)


def daemons(machine: Any) -> list[Found]:
    """Without those that ask one."""

    def serves(pid: int) -> bool:
        try:
            return b"-d" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    there = find_processes(machine.state)
    return [p for p in there if p.env.get("TANGRAM_ROLE") == "mps" and serves(p.pid)]


def apply(machine: Any, *models: str) -> None:
    file = machine.folder / "more.yaml"
    file.write_text("".join(models))
    applied = machine.run("apply", "-f", str(file))
    assert applied.returncode == 0, applied.stderr


def test_processes_share_a_gpu_by_mps_and_its_daemon_comes_and_goes_with_them(machine: Any) -> None:
    start(machine, document("who", BY_MPS, 2), document("other", BY_MPS))
    first, second = machine.wait_ready(2)
    (other,) = machine.wait_ready(1, "other")
    (daemon,) = daemons(machine)
    for replica in (first, second, other):
        env = environment(replica["pid"])
        assert env["CUDA_VISIBLE_DEVICES"] == replica["device"] == "GPU-0"
        assert env["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=2048M"
        assert env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
    log = (machine.state / "controller.log").read_text()
    assert "not attached" not in log
    # The daemon outlives the controller, as the replicas do, and is known again.
    term = machine.get("/status")["term"]
    os.kill(machine.pid("controller"), signal.SIGKILL)
    machine.wait_for(lambda: (s := machine.get("/status")) is not None and s["term"] > term)
    assert {r["pid"] for r in machine.wait_ready(2)} == {first["pid"], second["pid"]}
    assert [d.pid for d in daemons(machine)] == [daemon.pid]
    # Where the daemon dies too, the next start brings a new one.
    os.kill(daemon.pid, signal.SIGKILL)
    os.kill(first["pid"], signal.SIGKILL)
    machine.wait_for(lambda: first["pid"] not in {r["pid"] for r in machine.wait_ready(2)})
    (successor,) = daemons(machine)
    assert successor.pid != daemon.pid
    for name in ("who", "other"):
        assert machine.run("set", name, "--replicas", "0").returncode == 0
    machine.wait_for(lambda: not daemons(machine), what="no daemon of MPS")
    assert machine.stop() == 0


def test_a_process_that_does_not_attach_is_told_of(machine: Any) -> None:
    (machine.folder / "loner").touch()
    # The working directory is the file's, where the model looks for `loner`.
    start(machine, document("who", BY_MPS).replace("model: who.py", f"model: who.py, workingDir: {machine.folder}"))
    machine.wait_ready(1)
    log = machine.state / "controller.log"
    machine.wait_for(lambda: "who-1 is ready and not attached to its MPS daemon" in log.read_text())
    assert daemons(machine)
    assert machine.stop() == 0
    assert find_processes(machine.state) == []


def test_what_a_killed_installation_left_is_ended_by_down(machine: Any) -> None:
    start(machine, document("who", BY_MPS))
    machine.wait_ready(1)
    assert machine.supervisor is not None
    os.kill(machine.supervisor.pid, signal.SIGKILL)
    machine.supervisor.wait()
    os.kill(machine.pid("controller"), signal.SIGKILL)
    assert daemons(machine)
    assert machine.run("down").returncode == 0
    assert find_processes(machine.state) == []


def test_another_supervisor_leaves_the_daemon_alone(machine: Any) -> None:
    start(machine, document("who", BY_MPS))
    (replica,) = machine.wait_ready(1)
    (daemon,) = daemons(machine)
    assert machine.supervisor is not None
    os.kill(machine.supervisor.pid, signal.SIGKILL)
    machine.supervisor.wait()
    machine.up()
    (again,) = machine.wait_ready(1)
    assert again["pid"] == replica["pid"]
    assert [d.pid for d in daemons(machine)] == [daemon.pid]


def test_each_process_has_a_gpu_instance_of_its_own_by_mig(machine: Any) -> None:
    def by_mig(memory: str, compute: int) -> str:
        return f"{{memory: {{request: {memory}}}, compute: {compute}, mechanism: mig}}"

    start(machine, document("small", by_mig("4Gi", 10), 2), document("large", by_mig("30Gi", 40)))
    small = {r["name"]: r for r in machine.wait_ready(2, "small")}
    (large,) = machine.wait_ready(1, "large")
    seen = {n: environment(r["pid"])["CUDA_VISIBLE_DEVICES"] for n, r in (*small.items(), ("large-1", large))}
    assert len(set(seen.values())) == 3
    assert all(uuid.startswith("MIG-") for uuid in seen.values())
    # A restart on the same slots, after the controller has gone too.
    os.kill(machine.pid("controller"), signal.SIGKILL)
    os.kill(large["pid"], signal.SIGKILL)
    machine.wait_for(lambda: any(r["pid"] not in (None, large["pid"]) for r in machine.replicas(model="large")))
    (again,) = machine.wait_ready(1, "large")
    assert environment(again["pid"])["CUDA_VISIBLE_DEVICES"] == seen["large-1"]
    # The slots of those that leave are cut anew for others; those in use stay as they are.
    assert machine.run("set", "small", "--replicas", "0").returncode == 0
    machine.wait_for(lambda: not machine.items("/replicas?model=small"))
    apply(machine, document("middle", by_mig("18Gi", 25)))
    (middle,) = machine.wait_ready(1, "middle")
    assert environment(middle["pid"])["CUDA_VISIBLE_DEVICES"] not in seen.values()
    (still,) = machine.wait_ready(1, "large")
    assert still["pid"] == again["pid"]
    assert machine.get("/status")["oversold"] == []
    actions = [a for d in machine.items("/decisions?model=middle") for a in d["actions"]]
    assert any(a.startswith("repartition GPU-1: 2g.20gb at slot") for a in actions)
