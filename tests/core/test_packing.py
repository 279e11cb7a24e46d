"""What `tangram pack` works out."""

from __future__ import annotations

from typing import Any

import pytest

from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.verify import verify
from tangram.core.packing import pack
from tangram.spec import Model


def model(name: str, memory: str = "100Mi", compute: int = 10, priority: int = 0, **scaling: Any) -> Model:
    return Model.model_validate(
        {
            "apiVersion": "tangram.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "priority": priority,
                "runtime": {"model": "model.py"},
                "slice": {"memory": {"request": memory}, "compute": compute},
                "scaling": scaling,
            },
        }
    )


def fleet(*sizes: int) -> Inventory:
    return Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", size) for i, size in enumerate(sizes)))


def test_each_model_gets_its_minimum_and_at_least_one() -> None:
    packing = pack(
        [
            model("zero", minReplicas=0, maxReplicas=4),
            model("two", minReplicas=2, maxReplicas=4),
            model("fixed", minReplicas=1, maxReplicas=9, replicas=3),
        ],
        fleet(1_000),
    )
    assert [r.replica for r in packing.replicas] == ["zero-1", "two-1", "two-2", "fixed-1", "fixed-2", "fixed-3"]
    assert packing.refused == ()
    assert verify(packing.inventory, [r.replica for r in packing.replicas]) == []


def test_counts_may_be_given_by_name() -> None:
    packing = pack([model("x", maxReplicas=5), model("y")], fleet(1_000), {"x": 3})
    assert [r.model for r in packing.replicas] == ["x", "x", "x", "y"]
    assert pack([model("x")], fleet(1_000), {"x": 0}).replicas == ()


def test_higher_priority_is_placed_first_however_small() -> None:
    packing = pack([model("big", "900Mi"), model("urgent", "200Mi", priority=5)], fleet(1_000))
    big, urgent = packing.replicas
    assert isinstance(urgent.result, Placement)
    assert isinstance(big.result, NoFit)
    assert packing.refused == (big,)
    assert "100 MiB more memory needed than the 800 MiB free on it" in str(big.result)


def test_models_of_one_priority_are_packed_as_one_batch() -> None:
    packing = pack([model("small", "400Mi", minReplicas=2, maxReplicas=2), model("big", "1000Mi")], fleet(1_000, 1_000))
    assert packing.refused == ()


def test_room_is_for_each_model_alone_in_what_is_left() -> None:
    packing = pack([model("x", "300Mi", 0), model("y", "50Mi", 30)], fleet(1_000))
    assert dict(packing.room) == {"x": 2, "y": 2}


def test_what_is_taken_already_stays_taken() -> None:
    taken = Placement(SliceRequest("other-0", "other", 950), "a/gpu-0", "a")
    inventory = fleet(1_000)
    packing = pack([model("x")], Inventory(inventory.nodes, inventory.devices, (taken,)))
    assert len(packing.refused) == 1
    assert packing.inventory.placements == (taken,)


def test_counts_that_make_no_sense_are_errors() -> None:
    with pytest.raises(ValueError, match="model 'z' is not declared; declared are x"):
        pack([model("x")], fleet(1_000), {"z": 1})
    with pytest.raises(ValueError, match="x: -1 is negative; give 0 or more"):
        pack([model("x")], fleet(1_000), {"x": -1})
