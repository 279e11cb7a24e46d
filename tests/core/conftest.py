"""Small fleets and models to plan with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from packer.inventory import Device, Inventory, Node
from tangram.spec import Model

ModelFactory = Callable[..., Model]


@pytest.fixture
def make_model() -> ModelFactory:
    def make(name: str = "digits", *, memory: str = "400Mi", compute: int = 20, **parts: Any) -> Model:
        runtime = {"model": "/models/digits.py", **parts.pop("runtime", {})}
        scaling = {"minReplicas": 0, "maxReplicas": 20, **parts.pop("scaling", {})}
        return Model.model_validate(
            {
                "apiVersion": "tangram.dev/v1alpha1",
                "kind": "Model",
                "metadata": {"name": name},
                "spec": {
                    "runtime": runtime,
                    "slice": {"memory": {"request": memory}, "compute": compute},
                    "scaling": scaling,
                    **parts,
                },
            }
        )

    return make


@pytest.fixture
def fleet() -> Inventory:
    """Two nodes of two devices with 1000 MiB each: room for eight slices of 400 MiB, two a device."""
    nodes = (Node("a"), Node("b"))
    devices = tuple(Device(f"{n}/gpu-{i}", n, "virtual", 1000) for n in "ab" for i in range(2))
    return Inventory(nodes, devices)
