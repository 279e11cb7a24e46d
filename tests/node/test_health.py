"""GPUs that go and come back."""

from __future__ import annotations

from packer.inventory import Device
from tangram.node.discover import Discovery
from tangram.node.health import Watched, changes, look

GPUS = tuple(Device(f"GPU-{i}", "n", "NVIDIA H200", 1000) for i in range(3))


def well(watched: Watched) -> list[str]:
    return [d.id for d in watched.devices if d.healthy]


def test_a_gpu_that_is_missing_twice_is_not_well_until_it_is_back() -> None:
    start = Watched(GPUS)
    lost = Discovery(GPUS[:2], ("GPU 2 is left out: GPU is lost",))
    once = look(start, lost)
    assert well(once) == ["GPU-0", "GPU-1", "GPU-2"]
    assert changes(start, once) == []
    twice = look(once, lost)
    assert well(twice) == ["GPU-0", "GPU-1"]
    assert changes(once, twice) == ["GPU-2 (NVIDIA H200) is not there any more"]
    assert look(twice, lost).devices == twice.devices
    back = look(twice, Discovery(GPUS))
    assert back.devices == GPUS
    assert changes(twice, back) == ["GPU-2 (NVIDIA H200) is well again"]


def test_a_miss_now_and_then_is_none() -> None:
    watched = Watched(GPUS)
    for _ in range(5):
        watched = look(look(watched, Discovery(GPUS[1:])), Discovery(GPUS))
        assert watched.devices == GPUS


def test_where_nvml_cannot_be_asked_nothing_is_concluded() -> None:
    watched = Watched(GPUS)
    for _ in range(5):
        watched = look(watched, Discovery((), ("NVML cannot be used: Driver Not Loaded",), usable=False))
    assert watched == Watched(GPUS)
    # The only GPU of a machine may be lost, though.
    alone = look(look(Watched(GPUS[:1]), Discovery(())), Discovery(()))
    assert well(alone) == []


def test_a_gpu_that_was_not_there_before_is_added() -> None:
    before = Watched(GPUS[:2])
    after = look(before, Discovery(GPUS))
    assert after.devices == GPUS
    assert changes(before, after) == ["GPU-2 (NVIDIA H200) was found"]


def test_a_gpu_that_had_a_fault_is_not_well_from_then_on() -> None:
    before = Watched(GPUS)
    after = look(before, Discovery(GPUS), {"GPU-1": 79})
    assert well(after) == ["GPU-0", "GPU-2"]
    assert changes(before, after) == ["GPU-1 (NVIDIA H200) is not well: it had a fault (XID 79)"]
    assert look(after, Discovery(GPUS)) == after
    # Of a driver that does not answer nothing else is concluded.
    assert well(look(after, Discovery((), usable=False), {"GPU-2": 48})) == ["GPU-0"]
