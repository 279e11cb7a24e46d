"""Replicas of several devices, on virtual ones and on GPUs that a stand-in for NVML shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

FLEET = """
apiVersion: tangram.dev/v1alpha1
kind: Fleet
metadata: {name: test}
spec:
  nodes:
  - name: node-a
    devices:
    - {name: gpu-0, memory: 1Gi, cores: "0.5"}
    - {name: gpu-1, memory: 1Gi, cores: "0.5"}
    - {name: gpu-2, memory: 1Gi, cores: "0.5"}
    - {name: gpu-3, memory: 1Gi, cores: "0.5"}
    links:
    - {devices: [gpu-0, gpu-2], nvlinks: 4}
    - {devices: [gpu-1, gpu-3], distance: PIX}
"""
SCALING = "minReplicas: 1, maxReplicas: 2"


def wide(installation: Any, name: str = "who", **slice_: Any) -> str:
    """A model of two devices."""
    slice_ = {"memory": {"request": "100Mi"}, "devices": 2, **slice_}
    document: str = installation.document(name, scaling=SCALING)
    return document.replace(
        "slice: {memory: {request: 100Mi, limit: 200Mi}, compute: 20}", f"slice: {json.dumps(slice_)}"
    )


def environment(pid: int) -> dict[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(v.partition("=")[::2] for v in raw.split("\0") if v)


async def test_from_the_file_to_the_requests_and_through_failures(installation: Any, make_load: Any) -> None:
    installation.write(wide(installation), fleet=FLEET)
    installation.up()
    (first,) = installation.wait_ready(1)
    pair = ["node-a/gpu-0", "node-a/gpu-2"]
    assert first["devices"] == pair
    assert first["links"] == "2 devices joined by 4 NVLinks"
    given = environment(first["pid"])
    assert given["TANGRAM_DEVICES"] == "node-a/gpu-0,node-a/gpu-2"
    assert given["TANGRAM_CPU_SHARE"] == "1", "the cores of both"
    devices = {d["id"]: d for d in installation.items("/devices")}
    assert {d["id"] for d in devices.values() if d["computeRequested"] == 100} == set(pair)
    story = installation.run("explain", "who").stdout
    assert "holds node-a/gpu-0, node-a/gpu-2 whole (2Gi): 2 devices joined by 4 NVLinks" in story
    async with make_load(delay_ms=10).running() as load:
        await load.flow()
        # Neither the death of the replica nor that of the controller takes its devices from it.
        os.kill(first["pid"], signal.SIGKILL)
        await asyncio.to_thread(
            installation.wait_for, lambda: any(r["pid"] != first["pid"] for r in installation.replicas())
        )
        (again,) = await asyncio.to_thread(installation.wait_ready, 1)
        assert (again["name"], again["devices"]) == (first["name"], pair)
        term = installation.get("/status")["term"]
        os.kill(installation.pid("controller"), signal.SIGKILL)
        await asyncio.to_thread(
            installation.wait_for, lambda: (s := installation.get("/status")) is not None and s["term"] > term
        )
        (adopted,) = await asyncio.to_thread(installation.wait_ready, 1)
        assert (adopted["pid"], adopted["devices"]) == (again["pid"], pair)
    # A device that is taken out of service: no request is lost.
    sick = installation.folder / "sick.yaml"
    sick.write_text(FLEET.replace("name: gpu-2, ", "name: gpu-2, healthy: false, "))
    async with make_load(delay_ms=10).running() as load:
        await load.flow()
        applied = await asyncio.to_thread(installation.run, "apply", "-f", str(sick))
        assert applied.returncode == 0, applied.stderr
        await asyncio.to_thread(
            installation.wait_for,
            lambda: (
                {tuple(r["devices"]) for r in installation.items("/replicas")} == {("node-a/gpu-1", "node-a/gpu-3")}
            ),
            60.0,
        )
        await load.flow()
    assert load.failures == []
    (moved,) = installation.wait_ready(1)
    assert moved["links"] == "2 devices behind one PCIe switch (PIX)"
    actions = [a for d in installation.items("/decisions?model=who") for a in d["actions"]]
    assert any("takes over from who-1: node-a/gpu-2 is unhealthy" in a for a in actions)


async def test_what_cannot_be_is_refused_and_what_does_not_fit_is_told(installation: Any) -> None:
    installation.write(wide(installation), fleet=FLEET)
    installation.up()
    installation.wait_ready(1)
    bad = installation.folder / "bad.yaml"
    for slice_, told in (
        ({"devices": 5}, "no such node has more than 4"),
        ({"compute": 50}, "compute 50: a replica of 2 devices takes them whole"),
    ):
        bad.write_text(wide(installation, "bad", **slice_))
        refused = installation.run("apply", "-f", str(bad))
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
    bad.write_text(wide(installation, "four", devices=4))
    assert installation.run("apply", "-f", str(bad)).returncode == 0

    def told() -> list[str]:
        return [text for d in installation.items("/decisions?model=four") for text in d["refused"]]

    installation.wait_for(lambda: bool(told()))
    text = told()[0]
    assert "the slice needs 4 devices of one node, and at most 2 of a node have room" in text


#: A stand-in for NVML: four GPUs, of which those in the file `lost` cannot be opened; the one in `xid` has a fault.
PYNVML = """
import pathlib
from types import SimpleNamespace

class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
class NVMLError_FunctionNotFound(NVMLError): pass
class NVMLError_Timeout(NVMLError): pass
nvmlEventTypeXidCriticalError = 8
XID = pathlib.Path(__file__).with_name("xid")
NVML_DEVICE_MIG_ENABLE, NVML_FEATURE_ENABLED, nvmlMemory_v2 = 1, 1, 2
LOST = pathlib.Path(__file__).with_name("lost")

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlEventSetCreate(): return "events"
def nvmlDeviceRegisterEvents(h, kinds, events): pass
def nvmlEventSetWait_v2(events, timeout_ms):
    if not XID.exists():
        raise NVMLError_Timeout
    gpu = int(XID.read_text())
    XID.unlink()
    return SimpleNamespace(device=gpu, eventType=8, eventData=79)
def nvmlSystemGetDriverVersion(): return "570.1"
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetHandleByIndex(i):
    if LOST.exists() and str(i) in LOST.read_text().split():
        raise NVMLError("GPU is lost")
    return i
def nvmlDeviceGetUUID(h): return f"GPU-{h}"
def nvmlDeviceGetName(h): return "NVIDIA H200"
def nvmlDeviceGetCudaComputeCapability(h): return 9, 0
def nvmlDeviceGetMemoryInfo(h, version=None): return SimpleNamespace(total=8 << 30, reserved=1 << 30)
def nvmlDeviceGetMigMode(h): raise NVMLError_NotSupported
def nvmlDeviceGetPciInfo(h): return SimpleNamespace(busId=f"0000:0{h}:00.0")
def nvmlDeviceGetNvLinkState(h, link): raise NVMLError_NotSupported
def nvmlDeviceGetTopologyCommonAncestor(a, b): return 10 if a % 2 == b % 2 else 50
"""


async def test_on_gpus_the_process_sees_its_own_and_leaves_one_that_is_lost(
    installation: Any, make_load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = installation.folder / "fake"
    fake.mkdir()
    (fake / "pynvml.py").write_text(PYNVML)
    monkeypatch.setenv("PYTHONPATH", f"{fake}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    installation.write(wide(installation, mechanism="timeslice"), fleet="")
    installation.up()
    (first,) = installation.wait_ready(1)
    near = {("GPU-0", "GPU-2"), ("GPU-1", "GPU-3")}
    assert tuple(first["devices"]) in near
    assert first["links"] == "2 devices behind one PCIe switch (PIX)"
    assert environment(first["pid"])["CUDA_VISIBLE_DEVICES"] == ",".join(first["devices"])
    async with make_load(delay_ms=10).running() as load:
        await load.flow()
        (fake / "lost").write_text(first["devices"][1][-1])
        await asyncio.to_thread(
            installation.wait_for,
            lambda: near - {tuple(first["devices"])} == {tuple(r["devices"]) for r in installation.items("/replicas")},
            60.0,
        )
        await load.flow()
    assert load.failures == []
    unwell = {d["id"] for d in installation.items("/devices") if not d["healthy"]}
    assert unwell == {first["devices"][1]}
    (moved,) = installation.wait_ready(1)
    assert environment(moved["pid"])["CUDA_VISIBLE_DEVICES"] == ",".join(moved["devices"])
    # It is found again, and one of the others has a fault.
    (fake / "lost").unlink()
    (fake / "xid").write_text(moved["devices"][0][-1])
    installation.wait_for(
        lambda: {tuple(r["devices"]) for r in installation.items("/replicas")} == {tuple(first["devices"])}, 60.0
    )
    unwell = {d["id"] for d in installation.items("/devices") if not d["healthy"]}
    assert unwell == {moved["devices"][0]}
    assert "it had a fault (XID 79)" in (installation.state / "controller.log").read_text()
