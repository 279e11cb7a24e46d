"""What a trial remembers of devices and replicas changes no answer: beside one that looks at all of them each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoscaler.quota import Claim
from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.occupancy import Occupancy
from packer.place import place, place_into
from tangram.core import division
from tangram.core.convert import slice_request
from tangram.core.plans import Desired
from tangram.core.replica import Phase, Replica


class PlainTrial(division._Trial):
    """The same rules, and nothing remembered."""

    def __init__(
        self, requests: Mapping[str, SliceRequest], there: Mapping[str, Sequence[Placement]], empty: Inventory
    ) -> None:
        super().__init__(requests, there, empty)
        self.plain = requests

    def one_more(self, name: str) -> bool:
        there = [p for p in self._there[name] if p.request.id not in self._kept]
        left = next((p for p in there if p.request.id not in self._displaced), None)
        if left is not None:
            if not self._has_room(left):
                self._leave(left)
                return self.one_more(name)
            self._held.add(left)
            self._kept.add(left.request.id)
        elif there or not self._place(name):
            return False
        self.counts[name] += 1
        return True

    def _place(self, name: str) -> bool:
        request = replace(self.plain[name], id=f"{name}-new{self.counts[name]}")
        found = place_into(self._around, request) or place_into(self._held, request)
        if found is None:
            return False
        self._held.add(found)
        self._displace(found)
        self._around.add(found)
        self._places[name] += (found,)
        return True


@st.composite
def fleets(draw: Any) -> tuple[Inventory, list[tuple[str, int, int, int, int, int, float, float]]]:
    """Nodes and devices of several kinds; and models by memory, compute, priority, running, wanted, rate, suffered."""
    nodes = tuple(Node(f"n{i}", cpu_milli=draw(st.sampled_from([None, 3000]))) for i in range(draw(st.integers(1, 3))))
    devices = tuple(
        Device(f"{n.name}/gpu-{i}", n.name, "virtual", draw(st.sampled_from([800, 1200])), max_clients=4)
        for n in nodes
        for i in range(draw(st.integers(1, 3)))
    )
    models = [
        (
            name,
            draw(st.sampled_from([200, 300, 500, 700])),
            draw(st.sampled_from([0, 20, 50])),
            draw(st.integers(-1, 1)),
            draw(st.integers(0, 5)),
            draw(st.integers(0, 7)),
            draw(st.floats(0.0, 60.0)),
            draw(st.sampled_from([0.0, 0.3])),
        )
        for name in "abcdef"[: draw(st.integers(2, 6))]
    ]
    return Inventory(nodes, devices), models


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=fleets())
def test_a_division_is_the_same_whether_a_trial_remembers_or_looks_anew(drawn: Any, make_model: Any) -> None:
    fleet, rows = drawn
    occupancy, running, desired = Occupancy(fleet), [], {}
    for name, memory, compute, priority, there, wanted, rate, suffered in rows:
        model = make_model(name, memory=f"{memory}Mi", compute=compute, priority=priority)
        claim = Claim(name, 0, rate, 10.0, suffered=suffered)
        desired[name] = Desired(model, wanted, claim=claim)
        for number in range(there):
            where = place_into(occupancy, slice_request(model, f"{name}-{number}"))
            if where is not None:
                occupancy.add(where)
                running.append(
                    Replica(
                        f"{name}-{number}", name, model.revision, where, 0.0, phase=Phase.READY, since=10.0 * number
                    )
                )
    now = 1000.0
    found = division.divide(desired, running, fleet, None, now)
    with patch.object(division, "_Trial", PlainTrial):
        assert division.divide(desired, running, fleet, None, now) == found


def test_what_a_search_for_places_is_told_of_devices_changes_no_place() -> None:
    """Devices without room may be left out."""
    fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000) for i in range(3)))
    full = place(fleet, [SliceRequest("x", "x", 900)])[0]
    assert not isinstance(full, NoFit)
    occupancy = Occupancy(replace(fleet, placements=(full,)))
    request = SliceRequest("y", "y", 500)
    roomy = [t for t in occupancy.devices.values() if t.free_mib >= 500]
    assert place_into(occupancy, request, roomy) == place_into(occupancy, request)
