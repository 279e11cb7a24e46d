"""MIG in the loop: rolls and moves on full devices, and the layouts that starts need, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from packer.inventory import Device, Inventory, MigInstance, Node
from packer.mig import verify_layout
from packer.mix import Mix, shape_of
from packer.verify import verify
from tangram.core.convert import slice_request
from tangram.core.decision import in_words
from tangram.core.movers import RESIDENCY_S
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Desired, Drain, Observed, Plan, Repartition, Start, apply
from tangram.core.replica import Observation, Phase, Replica, observe
from tangram.spec import Model


class World:
    """MIG devices with a clock; every layout is checked against what is in use as it is asked for."""

    def __init__(self, devices: int, *models: Model) -> None:
        node = Node("n")
        mig = frozenset({"mig"})
        self.fleet = Inventory(
            (node,), tuple(Device(f"n/g{i}", "n", "A100-80", 81_920, mechanisms=mig) for i in range(devices))
        )
        self.models = {m.name: m for m in models}
        self.counts: dict[str, int] = {}
        self.replicas: tuple[Replica, ...] = ()
        self.ordinals: dict[str, int] = {}
        self.now = 1000.0
        self.last = Plan()
        self.tidy = False
        self.searched: dict[str, Any] = {}

    def step(self, seconds: float = 0.0, **counts: int) -> list[Any]:
        self.now += seconds
        self.counts.update(counts)
        drained = frozenset(r.name for r in self.replicas if r.phase is Phase.DRAINING)
        mix = Mix.of({shape_of(slice_request(m, m.name)): 1.0 for m in self.models.values()})
        observed = Observed(self.replicas, drained, self.searched, self.ordinals, mix=mix, tidy=self.tidy)
        desired = {n: Desired(m, self.counts.get(n, 0)) for n, m in self.models.items()}
        self.last = plan(observed, desired, ledger_of(self.fleet, self.replicas), self.now)
        self.searched.update(self.last.attempts)
        self._check(list(self.last.actions))
        for action in self.last.actions:
            if isinstance(action, Start) and not action.again:
                model, _, number = action.replica.name.rpartition("-")
                self.ordinals[model] = max(self.ordinals.get(model, 1), int(number) + 1)
        self.replicas = apply(self.replicas, self.last.actions, self.now)
        assert verify(ledger_of(self.fleet, self.replicas).inventory()) == []
        return list(self.last.actions)

    def _check(self, actions: list[Any]) -> None:
        """No layout takes slots from anybody, and each start finds its instance made."""
        used: dict[str, set[MigInstance]] = {}
        made: dict[str, tuple[MigInstance, ...]] = {}
        for replica in self.replicas:
            used.setdefault(replica.placement.device, set()).add(replica.placement.mig[0])
        for action in actions:
            if isinstance(action, Repartition):
                assert verify_layout("A100-80", action.layout) == []
                assert used.get(action.device, set()) <= set(action.layout)
                made[action.device] = action.layout
            if isinstance(action, Start) and not action.again:
                placement = action.replica.placement
                assert placement.mig[0] in made[placement.device]
                used.setdefault(placement.device, set()).add(placement.mig[0])

    def settle(self) -> None:
        """Starts become ready, what is stopped ends."""
        for replica in self.replicas:
            stopping = replica.phase is Phase.STOPPING
            seen = Observation(alive=not stopping, pid=1, started_at=self.now, ready=not stopping)
            if replica.phase in (Phase.STARTING, Phase.STOPPING):
                after, _ = observe(replica, seen, self.now)
                self.replicas = tuple(r for r in self.replicas if r.name != replica.name) + ((after,) if after else ())

    def lie(self) -> dict[str, tuple[str, MigInstance]]:
        return {r.name: (r.placement.device, r.placement.mig[0]) for r in self.replicas}


def a_model(make_model: Any, name: str, memory: str, compute: int) -> Model:
    model: Model = make_model(name, memory=memory, compute=compute)
    document = model.model_dump(by_alias=True, mode="json", exclude_unset=True)
    document["spec"]["slice"]["mechanism"] = "mig"
    return Model.model_validate(document)


def test_each_start_is_preceded_by_the_layout_that_it_needs(make_model: Any) -> None:
    world = World(1, a_model(make_model, "digits", "9Gi", 10))
    actions = world.step(digits=3)
    assert [type(a) for a in actions] == [Repartition, Start] * 3
    assert [len(a.layout) for a in actions if isinstance(a, Repartition)] == [1, 2, 3]
    assert "for digits-1" in in_words(actions[0])
    assert world.step() == []
    world.settle()
    assert world.step() == []


def test_slots_of_one_that_left_are_cut_anew_only_when_it_is_gone(make_model: Any) -> None:
    world = World(1, a_model(make_model, "small", "9Gi", 10), a_model(make_model, "whole", "70Gi", 90))
    world.step(small=1)
    world.settle()
    assert any(isinstance(a, Drain) for a in world.step(small=0, whole=1))
    assert world.lie().keys() == {"small-1"}
    world.step()
    assert not any(isinstance(a, Repartition) for a in world.step())
    world.settle()
    cut, start = world.step()
    assert isinstance(cut, Repartition)
    assert cut.layout == (MigInstance(0, "7g.80gb"),)
    assert isinstance(start, Start)


def test_a_fully_cut_device_still_rolls_an_update(make_model: Any) -> None:
    model = a_model(make_model, "digits", "39Gi", 40)
    world = World(1, model)
    world.step(digits=2)
    world.settle()
    world.step(RESIDENCY_S)
    assert len(world.replicas) == 2
    document = model.model_dump(by_alias=True, mode="json", exclude_unset=True)
    document["spec"]["runtime"] = {"model": "/models/new.py"}
    world.models["digits"] = Model.model_validate(document)
    assert world.models["digits"].revision != model.revision
    for _ in range(40):
        world.step(1.0)
        assert sum(r.phase is Phase.READY for r in world.replicas) >= 1
        world.settle()
    assert [r.revision for r in world.replicas] == [world.models["digits"].revision] * 2
    assert world.step() == []


def test_a_move_empties_slots_and_the_waiting_model_gets_them(make_model: Any) -> None:
    small, whole = a_model(make_model, "small", "9Gi", 10), a_model(make_model, "whole", "70Gi", 90)
    world = World(2, small, whole)
    world.step(small=2)
    world.settle()
    assert len({device for device, _ in world.lie().values()}) == 2
    world.step(RESIDENCY_S, whole=1)
    assert "room is being made" in world.last.waiting["whole"]
    for _ in range(10):
        world.step(1.0)
        assert sum(r.phase is Phase.READY and r.model == "small" for r in world.replicas) >= 2
        world.settle()
    lies = world.lie()
    assert [i for n, (_, i) in lies.items() if n.startswith("whole")] == [MigInstance(0, "7g.80gb")]
    assert len(lies) == 3
    assert world.step() == []


def test_tidying_moves_what_strands_slots(make_model: Any) -> None:
    four, two = a_model(make_model, "four", "39Gi", 50), a_model(make_model, "two", "19Gi", 20)
    single = a_model(make_model, "single", "9Gi", 10)
    world = World(2, four, two, single)
    world.step(four=2)
    world.step(two=1)
    world.step(single=1)
    world.settle()
    lies = world.lie()
    device = lies["two-1"][0]
    # As if the single had come when nothing else was free.
    world.replicas = tuple(
        replace(r, placement=replace(r.placement, device=device, mig=(MigInstance(6, "1g.10gb"),)))
        if r.model == "single"
        else replace(r, placement=replace(r.placement, mig=(MigInstance(4, "2g.20gb"),)))
        if r.model == "two"
        else r
        for r in world.replicas
    )
    assert verify(ledger_of(world.fleet, world.replicas).inventory()) == []
    world.tidy = True
    cut, start = world.step(RESIDENCY_S)
    assert isinstance(cut, Repartition)
    assert isinstance(start, Start)
    assert start.replica.replaces == "single-1"
    assert start.replica.placement.device != device
