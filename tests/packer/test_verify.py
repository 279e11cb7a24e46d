"""The checker finds what is wrong; it is trusted by all other tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from packer.inventory import ClassRefusal, Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.verify import verify, verify_refusal

NODE = Node("a", cpu_milli=4_000, memory_mib=4_000, labels={"pool": "x"})
DEVICE = Device("a/gpu-0", "a", "A100", 1_000, reserve_mib=100, max_clients=3, mechanisms=frozenset({"mps", "mig"}))


def on(name: str, memory: int = 1, compute: int = 0, device: str = "a/gpu-0", node: str = "a", **f: Any) -> Placement:
    return Placement(
        SliceRequest(name, "m", memory, compute=compute, mechanism=f.pop("mechanism", "mps"), **f), device, node
    )


def fleet(*placements: Placement, node: Node = NODE, device: Device = DEVICE) -> Inventory:
    return Inventory((node,), (device,), placements)


def test_a_full_device_is_sound() -> None:
    assert verify(fleet(on("x", 500, 50, cpu_milli=4_000), on("y", 400, 50, host_memory_mib=4_000)), ("x", "y")) == []


@pytest.mark.parametrize(
    ("inventory", "words"),
    [
        (fleet(on("x", 500), on("y", 401)), "901 MiB guaranteed of 1000 less 100 MiB reserve"),
        (fleet(on("x", 1, 60), on("y", 1, 41)), "101% of compute given of 100%"),
        (fleet(*(on(n) for n in "wxyz")), "4 clients, of which it can serve 3"),
        (fleet(on("x"), on("y", mechanism="mig")), "mechanisms mig, mps at once"),
        (fleet(on("x", cpu_milli=4_001)), "4001m of host CPU given of 4000m"),
        (fleet(on("x", host_memory_mib=4_001)), "4001 MiB of host memory"),
        (fleet(on("x"), on("x")), "instance x: is there 2 times"),
        (fleet(on("x", device="a/gpu-9")), "its device a/gpu-9 is unknown"),
        (fleet(on("x", node="b")), "device a/gpu-0 is on node a, not on b"),
        (fleet(on("x", device_models=frozenset({"H100"}))), "lies on model A100"),
        (fleet(on("x", labels={"pool": "y"})), "neither a/gpu-0 nor a carries pool=y"),
        (fleet(on("x", mechanism="virtual")), "does not offer mechanism virtual"),
        (fleet(on("x", 0)), "0 MiB is no guarantee"),
        (fleet(on("x", 5, memory_limit_mib=4)), "limit 4 MiB is below the guarantee"),
        (fleet(device=replace(DEVICE, node="b")), "its node b is unknown"),
        (Inventory((NODE, NODE), (DEVICE,)), "node a: is there 2 times"),
        (Inventory((NODE,), (DEVICE, DEVICE)), "device a/gpu-0: is there 2 times"),
    ],
)
def test_what_is_wrong_is_said(inventory: Inventory, words: str) -> None:
    assert any(words in problem for problem in verify(inventory)), verify(inventory)


def test_a_broken_device_may_hold_old_slices_but_take_no_new_ones() -> None:
    broken = fleet(on("x"), device=replace(DEVICE, healthy=False), node=replace(NODE, schedulable=False))
    assert verify(broken) == []
    assert len(verify(broken, ("x",))) == 2


def test_an_instance_said_to_be_placed_must_be_there() -> None:
    assert verify(fleet(), ("x",)) == ["instance x: said to be placed and is not"]


def refusal(reason: str, devices: int = 1, **fields: int) -> NoFit:
    request = SliceRequest("new", "m", 500, mechanism="mps")
    return NoFit(request, (ClassRefusal("A100", devices, reason, **fields),))


def test_a_true_refusal_passes_and_false_ones_do_not() -> None:
    full = fleet(on("x", 600))
    assert verify_refusal(full, refusal("memory", missing_mib=200)) == []
    assert verify_refusal(fleet(), refusal("memory")) == [
        "device a/gpu-0 would take new",
        "A100: memory keeps the slice off none of its devices",
    ]
    assert verify_refusal(full, refusal("compute", missing_mib=200)) != []
    assert verify_refusal(full, refusal("memory", missing_mib=199)) != []
    assert verify_refusal(full, refusal("memory", devices=2)) != []
