"""Devices as text tiles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tangram.console.tiles import Tile, apportion, draw, of_pack
from tangram.control.views import DeviceView, PackedReplicaView, PackView


def device(name: str = "a/gpu-0", total: int = 8_192, **fields: Any) -> DeviceView:
    return DeviceView(
        **{
            "id": name,
            "node": name.split("/")[0],
            "model": "virtual",
            "memory_total": total,
            "memory_reserve": 0,
            "memory_requested": 0,
            "compute_requested": 0,
            "clients": 0,
            "max_clients": 48,
            "mechanisms": ("virtual",),
            **fields,
        }
    )


def bars(text: str) -> list[str]:
    """What stands between the bars' edges, memory and compute of each device in turn."""
    return [line.split("|")[1] for line in text.splitlines() if line.count("|") == 2]


def test_a_fleet_reads_as_a_tangram() -> None:
    devices = [
        device("a/gpu-0", 9_216, memory_reserve=1_024, memory_requested=6_144, compute_requested=50, clients=3),
        device("b/gpu-0", 8_192),
    ]
    tiles = [
        Tile("a/gpu-0", "embed", 4_096, 50),
        Tile("a/gpu-0", "digits", 1_024, 0),
        Tile("a/gpu-0", "digits", 1_024, 0),
    ]
    assert draw(devices, tiles) == "\n".join(
        [
            "a/gpu-0  virtual, 3 of 48 clients",
            "  memory   |AAAAAAaaaaaBBBBBBBBBBBBBBBBBBBBB...........#####|   75%  2Gi free",
            "  compute  |BBBBBBBBBBBBBBBBBBBBBBBB........................|   50%  50% free",
            "",
            "b/gpu-0  virtual, 0 of 48 clients",
            "  memory   |................................................|    0%  8Gi free",
            "  compute  |................................................|    0%  100% free",
            "",
            "  A a  digits  2 slices of 1Gi and best-effort compute",
            "  B b  embed   1 slice of 4Gi and 50%",
            "  . free   # reserve",
            "  2 devices: 38% of 16Gi memory given, 25% of compute",
            "  left over: 10Gi memory, at most 8Gi on one device (b/gpu-0)",
        ]
    )


def test_neighbouring_slices_of_one_model_are_told_apart() -> None:
    tiles = [Tile("a/gpu-0", "m", 2_048, 25)] * 4
    memory, compute = bars(draw([device(memory_requested=8_192, compute_requested=100)], tiles))
    assert memory == "A" * 12 + "a" * 12 + "A" * 12 + "a" * 12
    assert compute == memory


def test_a_tiny_slice_is_still_seen() -> None:
    memory, compute = bars(
        draw([device(total=800_000, memory_requested=1, compute_requested=1)], [Tile("a/gpu-0", "m", 1, 1)])
    )
    assert memory.count("A") == compute.count("A") == 1


def test_lines_keep_to_the_width() -> None:
    name = "a-node-with-a-rather-long-name-of-fifty-characters/device-with-a-long-name-too"
    tiles = [Tile(name, f"model-with-quite-a-long-name-{i}", 100 + i, i) for i in range(5)]
    tiles += [Tile(name, "model-with-quite-a-long-name-0", 7_000, 3)]
    for width in (50, 80, 120):
        text = draw([device(name, memory_requested=99_999, compute_requested=99)], tiles, width)
        assert max(map(len, text.splitlines())) <= width


def test_compute_and_clients_that_ran_out_strand_memory() -> None:
    text = draw([device(memory_requested=1_024, compute_requested=100)], [Tile("a/gpu-0", "m", 1_024, 100)])
    assert "of it 7Gi where no compute or client is left to go with it" in text
    assert "of it" not in draw([device()], [])


def test_what_is_oversold_and_unhealthy_is_said() -> None:
    text = draw([device(memory_requested=9_216, healthy=False)], [Tile("a/gpu-0", "m", 9_216, 0)])
    assert "1Gi OVER" in text
    assert "UNHEALTHY" in text


def test_slices_that_were_not_listed_show() -> None:
    text = draw([device(memory_requested=4_096)], [])
    assert bars(text)[0] == "?" * 24 + "." * 24
    assert "? not listed here" in text


def test_more_models_than_letters() -> None:
    tiles = [Tile("a/gpu-0", f"m{i:02}", 100, 0) for i in range(28)]
    text = draw([device(memory_requested=2_800)], tiles)
    assert "* +  2 more models" in text
    assert "Z z  m25" in text


def test_no_devices() -> None:
    assert draw([], []) == "no devices"


def test_replicas_without_a_place_are_not_drawn() -> None:
    replicas = tuple(
        PackedReplicaView(
            model="m", replica=f"m-{i}", device=(*place, None)[0], devices=place, memory=10, compute=5, why=""
        )
        for i, place in enumerate((("a/gpu-0",), ()))
    )
    assert of_pack(PackView(replicas=replicas, devices=(device(),), room={"m": 1})) == [Tile("a/gpu-0", "m", 10, 5)]


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(1, 60))
def test_cells_are_shared_out_fully_and_fairly(weights: list[int], cells: int) -> None:
    counts = apportion(weights, cells)
    assert sum(counts) == (cells if sum(weights) else 0)
    assert all(count == 0 for weight, count in zip(weights, counts, strict=True) if weight == 0)
    some = [count for weight, count in zip(weights, counts, strict=True) if weight]
    if len(some) <= cells:
        assert all(some)
    by_weight = sorted(zip(weights, counts, strict=True))
    assert all(b[1] >= a[1] - 1 for a, b in pairwise(by_weight))


def test_a_replica_of_several_devices_fills_each_of_them() -> None:
    taken = {"compute_requested": 100, "clients": 1}
    devices = [
        device("a/gpu-0", 8_192, memory_requested=8_192, distances={"a/gpu-1": "PIX"}, **taken),
        device(
            "a/gpu-1",
            4_096,
            memory_requested=4_096,
            links={"a/gpu-2": 4},
            distances={"a/gpu-0": "PIX", "a/gpu-2": "SYS"},
            **taken,
        ),
    ]
    both = ("a/gpu-0", "a/gpu-1")
    replica = PackedReplicaView(
        model="wide", replica="wide-1", device=both[0], devices=both, memory=12_288, compute=100, why=""
    )
    text = draw(devices, of_pack(PackView(replicas=(replica,), devices=tuple(devices), room={})))
    assert all(set(bar) == {"A"} for bar in bars(text))
    assert "  A a  wide  2 whole devices" in text
    assert "a/gpu-1  virtual, 1 of 48 clients, 4 NVLinks to gpu-2, PIX to gpu-0\n" in text
