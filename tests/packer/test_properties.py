"""Invariants over any fleet and any sequence of arrivals and departures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from packer.defrag import defragment
from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.ledger import Ledger
from packer.mix import Mix
from packer.moves import make_room
from packer.place import place, room
from packer.verify import verify, verify_plan, verify_refusal

MODELS = ("A100", "T4")
POOLS = ("x", "y")


@st.composite
def fleets(draw: st.DrawFn) -> Inventory:
    nodes, devices = [], []
    for number in range(draw(st.integers(1, 3))):
        node = Node(
            f"n{number}",
            cpu_milli=draw(st.sampled_from((None, 2_000, 6_000))),
            memory_mib=draw(st.sampled_from((None, 500, 4_000))),
            labels=draw(st.sampled_from(({}, {"pool": "x"}, {"pool": "y"}))),
            schedulable=draw(st.sampled_from((True, True, True, False))),
        )
        nodes.append(node)
        for index in range(draw(st.integers(1, 3))):
            model = draw(st.sampled_from(MODELS))
            devices.append(
                Device(
                    f"{node.name}/gpu-{index}",
                    node.name,
                    model,
                    memory_mib={"A100": 800, "T4": 300}[model],
                    reserve_mib=draw(st.sampled_from((0, 50))),
                    compute=draw(st.sampled_from((100, 100, 50))),
                    max_clients=draw(st.sampled_from((2, 48))),
                    mechanisms=draw(st.sampled_from((frozenset({"mps"}), frozenset({"mps", "mig"})))),
                    healthy=draw(st.sampled_from((True, True, True, False))),
                )
            )
    return Inventory(tuple(nodes), tuple(devices))


def requests(name: str) -> st.SearchStrategy[SliceRequest]:
    return st.builds(
        SliceRequest,
        id=st.just(name),
        group=st.sampled_from(("digits", "embed", "text")),
        memory_mib=st.integers(1, 500),
        compute=st.integers(0, 70),
        mechanism=st.sampled_from(("mps", "mps", "mps", "mig")),
        cpu_milli=st.sampled_from((0, 0, 700)),
        host_memory_mib=st.sampled_from((0, 0, 200)),
        device_models=st.sampled_from((frozenset[str](), frozenset[str](), frozenset({"A100"}))),
        labels=st.sampled_from(({}, {}, {"pool": "x"})),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[list[SliceRequest]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return [[draw(requests(f"r{b}-{i}")) for i in range(size)] for b, size in enumerate(sizes)]


def admit(inventory: Inventory, batch: list[SliceRequest]) -> tuple[Inventory, list[Placement | NoFit]]:
    results = place(inventory, batch)
    found = tuple(r for r in results if isinstance(r, Placement))
    return replace(inventory, placements=inventory.placements + found), results


@settings(deadline=None, max_examples=120)
@given(fleets(), batches(), st.randoms(use_true_random=False))
def test_no_arrivals_and_departures_oversell_and_every_refusal_is_true(
    inventory: Inventory, sequence: list[list[SliceRequest]], rng: Random
) -> None:
    for batch in sequence:
        inventory, results = admit(inventory, batch)
        assert [r.request for r in results] == batch
        assert verify(inventory, [r.request.id for r in results if isinstance(r, Placement)]) == []
        for result in results:
            if isinstance(result, NoFit):
                # No device would take it: the placer is work-conserving, and its reasons hold.
                assert verify_refusal(inventory, result) == []
        gone = {p.request.id for p in inventory.placements if rng.random() < 0.4}
        inventory = replace(inventory, placements=tuple(p for p in inventory.placements if p.request.id not in gone))


@settings(deadline=None, max_examples=60)
@given(fleets(), batches())
def test_the_ledger_takes_what_place_gives_and_comes_back_to_empty(
    inventory: Inventory, sequence: list[list[SliceRequest]]
) -> None:
    books = Ledger.rebuild(inventory)
    for batch in sequence:
        found = [r for r in place(books.inventory(), batch) if isinstance(r, Placement)]
        books = books.reserve(*found)
        assert verify(books.inventory()) == []
        assert books.oversold() == ()
    assert Ledger.rebuild(books.inventory()).inventory() == books.inventory()
    for instance in list(books.entries):
        books = books.commit(instance).release(instance)
    assert books.inventory() == inventory


@settings(deadline=None, max_examples=60)
@given(fleets(), batches(), requests("probe"))
def test_room_is_how_often_place_says_yes(
    inventory: Inventory, sequence: list[list[SliceRequest]], probe: SliceRequest
) -> None:
    for batch in sequence:
        inventory, _ = admit(inventory, batch)
    count = room(inventory, probe)
    copies = [replace(probe, id=f"probe-{i}") for i in range(min(count, 60) + 1)]
    inventory, results = admit(inventory, copies)
    fitted = sum(isinstance(r, Placement) for r in results)
    assert fitted == min(count, len(copies))
    assert room(inventory, probe) == count - fitted


@settings(deadline=None, max_examples=80)
@given(fleets(), batches(), st.randoms(use_true_random=False))
def test_names_and_order_of_nodes_and_devices_change_no_outcome(
    inventory: Inventory, sequence: list[list[SliceRequest]], rng: Random
) -> None:
    twin = renamed(inventory, rng)
    for batch in sequence:
        inventory, results = admit(inventory, batch)
        twin, mirrored = admit(twin, batch)
        assert [outcome(r) for r in results] == [outcome(r) for r in mirrored]
    assert shape(inventory) == shape(twin)


@settings(deadline=None, max_examples=25)
@given(fleets(), batches(), st.randoms(use_true_random=False))
def test_devices_that_fail_and_come_back_take_nothing_meanwhile(
    inventory: Inventory, sequence: list[list[SliceRequest]], rng: Random
) -> None:
    """On the engine: by mix, with several devices, moves, defragmentation and the ledger."""
    books = Ledger.rebuild(inventory)
    mix = Mix.recent([replace(r, mechanism="mps") for batch in sequence for r in batch])
    for batch in sequence:
        devices = [replace(d, healthy=d.healthy != (rng.random() < 0.3)) for d in books.devices]
        books = books.with_fleet(books.nodes, devices)
        broken = {d.id for d in devices if not d.healthy}
        batch = [replace(r, mechanism="mps", devices=rng.choice((1, 1, 2))) for r in batch]
        batch = [replace(r, whole=True, compute=100) if r.devices > 1 and rng.random() < 0.5 else r for r in batch]
        results = place(books.inventory(), batch, mix=mix)
        found = [r for r in results if isinstance(r, Placement)]
        assert not broken & {d for p in found for d in p.all_devices}
        books = books.reserve(*found)
        for refused in (r for r in results if isinstance(r, NoFit)):
            assert verify_refusal(books.inventory(), refused) == []
            plan = make_room(books.inventory(), refused.request, most=2, mix=mix)
            if plan is not None:
                assert verify_plan(books.inventory(), plan) == []
                assert not broken & {d for m in plan.moves for d in m.target.all_devices}
        for move in defragment(books.inventory(), mix, least_gain=1.0):
            assert not broken & {*move.target.all_devices}
            books = books.release(move.instance).reserve(move.target)
        assert verify(books.inventory()) == []
        assert books.oversold() == ()


def renamed(inventory: Inventory, rng: Random) -> Inventory:
    """The same fleet under other names, in another order."""
    names = [n.name for n in inventory.nodes]
    new = dict(zip(names, rng.sample([f"z{i}" for i in range(len(names))], len(names)), strict=True))
    nodes = [replace(n, name=new[n.name]) for n in inventory.nodes]
    ids = rng.sample(range(len(inventory.devices)), len(inventory.devices))
    devices = [
        replace(d, id=f"{new[d.node]}/{i}", node=new[d.node]) for i, d in zip(ids, inventory.devices, strict=True)
    ]
    return Inventory(tuple(rng.sample(nodes, len(nodes))), tuple(rng.sample(devices, len(devices))))


def outcome(result: Placement | NoFit) -> tuple[object, ...]:
    if isinstance(result, Placement):
        return (result.score, result.why, sorted(a.score for a in result.alternatives))
    return tuple((r.device_class, r.devices, r.reason, r.missing_mib) for r in result.refusals)


def shape(inventory: Inventory) -> Counter[tuple[str, ...]]:
    """Which instances lie together, without saying where."""
    together: dict[str, list[str]] = {}
    for p in inventory.placements:
        together.setdefault(p.device, []).append(f"{p.request.group} {p.request.memory_mib} {p.request.compute}")
    return Counter(tuple(sorted(ids)) for ids in together.values())
