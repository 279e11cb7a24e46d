"""What an operator reads of a placement: words and units, no bare numbers."""

from __future__ import annotations

from packer.inventory import Device, Inventory, MigInstance, Node, Placement, SliceRequest
from packer.mix import Mix
from packer.place import place
from packer.words import passed_over, slots_taken, taken


def fleet(nodes: int) -> Inventory:
    names = [f"n{i}" for i in range(nodes)]
    return Inventory(tuple(map(Node, names)), tuple(Device(f"{n}/g", n, "T4", 16_000) for n in names))


def test_costs_are_told_in_gpus_of_useful_room() -> None:
    assert taken(1, 26.0, 3_000, 10) == (
        "the only node with room: 0.26 GPU of room that expected demand could use; "
        "leaves 3,000 MiB and 10% compute free on the device"
    )
    assert passed_over(31.0, 26.0, 0, "a", False) == "would cost 0.31 GPU of useful room, 0.05 GPU more"
    assert passed_over(26.2, 26.0, 0, "a", False) == "would cost as much, 0.26 GPU of useful room"
    assert passed_over(10.0, 26.0, 2, "a", False).startswith("its node holds 2 replicas of a already")
    assert passed_over(10.0, 26.0, 2, "a", True) == "a start there failed lately"


def test_each_alternative_says_why_it_lost() -> None:
    first = [SliceRequest(f"a-{i}", "a", 4_000, compute=30) for i in range(2)]
    for mix in (None, Mix.recent(first)):
        _, second = place(fleet(2), first, mix=mix)
        assert isinstance(second, Placement)
        (other,) = second.alternatives
        assert "holds 1 replica of a already" in other.why
    (tight,) = place(
        Inventory(
            fleet(2).nodes,
            (Device("n0/g", "n0", "T4", 16_000), Device("n1/g", "n1", "T4", 5_000)),
        ),
        first[:1],
    )
    assert isinstance(tight, Placement)
    assert tight.device == "n1/g"
    assert tight.alternatives[0].why == (
        "a looser fit: would leave 12,000 MiB and 70% compute free, not 1,000 MiB and 70%"
    )


def test_a_mig_instance_says_what_its_device_still_takes() -> None:
    def lies(*pieces: tuple[int, str]) -> frozenset[MigInstance]:
        return frozenset(MigInstance(*piece) for piece in pieces)

    four = lies((0, "4g.40gb"))
    assert slots_taken("A100-80", lies(), four) == (
        "leaves room for 1 x 3g.40gb or 1 x 2g.20gb or 2 x 1g.20gb or 3 x 1g.10gb"
    )
    assert slots_taken("A100-80", four, four | lies((4, "3g.40gb"))) == "fills the device"
    two = four | lies((4, "2g.20gb"))
    assert slots_taken("A100-80", two, two | lies((6, "1g.10gb"))) == "fills the device, 1 slot out of reach"
