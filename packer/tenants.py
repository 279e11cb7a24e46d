"""Who lies where on an `Engine`, and the moves that make room where a shape fits nowhere.

A move is make-before-break: the sibling takes its new place while the old one is still held, then the old one is given
back. A plan is a list of such moves, each of which fits when its turn comes, so that at no step a device is oversold.

`make_room` looks for a node from which few tenants have to go: for each candidate node it picks the devices that are
nearest to taking the shape and, greedily, tenants whose leaving covers what is missing there of device, host CPU and
host memory; those must find places elsewhere (by the engine's policy), if need be by moves of their own. The fewest
and smallest displaced tenants are tried first; an attempt that fails is rolled back. Tenants that may not be moved
stay, and the number of moves is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from packer.engine import Column, Engine, Spot
from packer.mix import Shape

_ATTEMPTS: Final = 200
"""Candidate nodes tried in earnest for one shape."""
_NESTED_ATTEMPTS: Final = 8
_LOOKED_AT: Final = 700
"""Nodes looked at for who would have to go."""
_AT_ONCE: Final = 128
"""Of those, nodes compared with each other before any is tried."""
_CHAIN_LOOKED_AT: Final = 128
_CHAIN_ATTEMPTS: Final = 48


@dataclass(frozen=True, slots=True)
class Tenant:
    """One placed Instance."""

    key: int
    shape: Shape
    spot: Spot
    movable: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """One move: the tenant's sibling is placed at `target`, then `source` is given back."""

    key: int
    shape: Shape
    source: Spot
    target: Spot


class Tenants:
    """The tenants of an engine's fleet; every change goes through here."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.held: dict[int, Tenant] = {}
        self._hopeless: set[Shape] = set()
        """While room is looked for: shapes for which a search of their own found none."""
        self._homes: dict[Shape, bool] = {}
        """While room is looked for: whether a shape fits somewhere as things lay at the start."""
        self._at: list[dict[int, Tenant]] = [{} for _ in range(len(engine.cpu))]

    def place(self, shape: Shape, key: int, movable: bool = True) -> Tenant | None:
        """Place by the engine's policy; None where the shape fits nowhere as things lie."""
        spot = self.engine.best(shape)
        return None if spot is None else self.put(Tenant(key, shape, spot, movable))

    def put(self, tenant: Tenant) -> Tenant:
        """Count a tenant where it is."""
        self.engine.take(tenant.shape, tenant.spot, tenant.key)
        self.held[tenant.key] = tenant
        self._at[tenant.spot.node][tenant.key] = tenant
        return tenant

    def leave(self, key: int) -> Tenant:
        """The tenant departs."""
        tenant = self.held.pop(key)
        del self._at[tenant.spot.node][key]
        self.engine.give(tenant.shape, tenant.spot, key)
        return tenant

    def on(self, node: int) -> list[Tenant]:
        """Tenants of a node."""
        return list(self._at[node].values())

    def move(self, key: int, target: Spot) -> Step:
        """Make before break."""
        tenant = self.held[key]
        self.engine.take(tenant.shape, target, key)
        del self._at[tenant.spot.node][key]
        self.engine.give(tenant.shape, tenant.spot, key)
        self.held[key] = moved = Tenant(key, tenant.shape, target, tenant.movable)
        self._at[target.node][key] = moved
        return Step(key, tenant.shape, tenant.spot, target)

    def undo(self, steps: list[Step]) -> None:
        """Take moves back, the last first."""
        for step in reversed(steps):
            self.move(step.key, step.source)

    # --- making room ---

    def make_room(self, shape: Shape, most: int) -> tuple[list[Step], Spot] | None:
        """At most `most` moves, carried out here, and where the shape then fits; None changes nothing."""
        self._hopeless.clear()
        self._homes.clear()
        found = self._make_room(shape, most, frozenset(), chains=False)
        if found is None and most > 1:
            found = self._make_room(shape, most, frozenset(), chains=True)
        return found

    def _make_room(self, shape: Shape, most: int, shut: frozenset[int], chains: bool) -> tuple[list[Step], Spot] | None:
        """With `chains` tenants that have nowhere to go may go where others make room for them."""
        attempts = _NESTED_ATTEMPTS if shut else _CHAIN_ATTEMPTS if chains else _ATTEMPTS
        for evicted, node in islice(self._candidates(shape, most, shut, chains), attempts):
            steps: list[Step] = []
            closed = shut | {node}
            for tenant in evicted:
                found = self._relocate(tenant, most - len(steps), closed, chains)
                if found is None:
                    break
                steps += found
            else:
                spot = self.engine.spot_on(shape, node)
                if spot is not None:
                    return steps, spot
            self.undo(steps)
        return None

    def _relocate(self, tenant: Tenant, most: int, closed: frozenset[int], chains: bool) -> list[Step] | None:
        if most < 1:
            return None
        target = self.engine.best(tenant.shape, closed)
        if target is not None:
            return [self.move(tenant.key, target)]
        if not chains or most < 2 or tenant.shape in self._hopeless:
            return None
        room = self._make_room(tenant.shape, most - 1, closed, chains=False)
        if room is None:
            self._hopeless.add(tenant.shape)
            return None
        steps, target = room
        return [*steps, self.move(tenant.key, target)]

    def _may_go(self, tenant: Tenant, chains: bool) -> bool:
        """Whether to think of moving the tenant: it fits elsewhere as things lie, or with chains may be made to."""
        if not tenant.movable:
            return False
        shape = tenant.shape
        home = self._homes.get(shape)
        if home is None:
            home = self._homes[shape] = self.engine.best(shape) is not None
        return home or (chains and shape not in self._hopeless)

    def _candidates(
        self, shape: Shape, most: int, shut: frozenset[int], chains: bool
    ) -> Iterator[tuple[list[Tenant], int]]:
        """Nodes and who would have to go: of the nodes nearest to taking the shape the fewest and smallest first."""
        engine = self.engine
        column = engine.column(shape)
        eligible = column.open & (engine.cpu_total >= shape.cpu_milli) & (engine.ram_total >= shape.host_memory_mib)
        nodes = _promising(engine, column, eligible, _LOOKED_AT if not shut and not chains else _CHAIN_LOOKED_AT)
        for first in range(0, len(nodes), _AT_ONCE):
            found: list[tuple[int, float, int, int, list[Tenant]]] = []
            for node in nodes[first : first + _AT_ONCE]:
                if node in shut:
                    continue
                evicted = self._evictions(shape, column, node, most, chains)
                if evicted:
                    weight = sum(t.shape.compute * t.shape.devices + t.shape.cpu_milli / 1000 for t in evicted)
                    found.append((len(evicted), weight, int(engine.sig[node]), node, evicted))
            found.sort(key=lambda f: f[:3])
            for _, _, _, node, evicted in found:
                yield evicted, node

    def _evictions(self, shape: Shape, column: Column, node: int, most: int, chains: bool) -> list[Tenant] | None:
        """Tenants whose leaving lets the shape onto the node, largest first; None where there are none or too many."""
        engine = self.engine
        here = self.on(node)
        chosen: dict[int, Tenant] = {}
        if shape.devices:
            able = column.allowed[node].nonzero()[0]
            whole = shape.compute == 100 and len(able) == shape.devices
            if whole and sum(t.shape.devices > 0 for t in here) > most:
                return None
            by_device: dict[int, list[Tenant]] = {}
            for t in here:
                for d in t.spot.devices:
                    by_device.setdefault(d, []).append(t)
            options = []
            for d in able:
                needed = self._clear(shape, node, int(d), by_device.get(int(d), []), most, chains)
                if needed is not None:
                    size = sum(t.shape.compute * t.shape.devices for t in needed)
                    options.append((len(needed), size, int(engine.device_sig[node, d]), needed))
            if len(options) < shape.devices:
                return None
            options.sort(key=lambda o: o[:3])
            for _, _, _, needed in options[: shape.devices]:
                chosen.update((t.key, t) for t in needed)
        cpu = shape.cpu_milli - int(engine.cpu[node]) - sum(t.shape.cpu_milli for t in chosen.values())
        ram = shape.host_memory_mib - int(engine.ram[node]) - sum(t.shape.host_memory_mib for t in chosen.values())
        rest = [t for t in here if t.key not in chosen and self._may_go(t, chains)] if cpu > 0 or ram > 0 else []
        while cpu > 0 or ram > 0:
            if not rest or len(chosen) >= most:
                return None
            best = max(
                rest,
                key=lambda t: (
                    _covered(t.shape, cpu, ram) / (20.0 + t.shape.compute * t.shape.devices),
                    -t.shape.cpu_milli,
                    t.key,
                ),
            )
            if _covered(best.shape, cpu, ram) <= 0:
                return None
            rest.remove(best)
            chosen[best.key] = best
            cpu -= best.shape.cpu_milli
            ram -= best.shape.host_memory_mib
        if not chosen or len(chosen) > most:
            return None
        return sorted(chosen.values(), key=lambda t: (-t.shape.devices, -t.shape.compute, -t.shape.cpu_milli, t.key))

    def _clear(
        self, shape: Shape, node: int, device: int, here: list[Tenant], most: int, chains: bool
    ) -> list[Tenant] | None:
        """Who has to leave one device so that a slice of the shape fits there."""
        engine = self.engine
        compute = shape.compute - int(engine.compute[node, device])
        usable = int(engine.usable[node, device])
        memory = (usable if shape.whole else shape.memory_mib) - int(engine.memory[node, device])
        clients = 1 - int(engine.clients[node, device])
        if int(engine.whole[node, device]) < shape.compute or usable < shape.memory_mib:
            return None
        gone: list[Tenant] = []
        rest = [t for t in here if self._may_go(t, chains)]
        while compute > 0 or memory > 0 or clients > 0:
            able = [t for t in rest if t.shape.compute >= compute and t.shape.memory_mib >= memory]
            if able:
                best = min(able, key=lambda t: (t.shape.devices, t.shape.compute, t.shape.cpu_milli, t.key))
            elif rest:
                best = max(rest, key=lambda t: (-t.shape.devices, t.shape.compute, t.shape.memory_mib, t.key))
            else:
                return None
            if len(gone) == most:
                return None
            rest.remove(best)
            gone.append(best)
            compute -= best.shape.compute
            memory -= usable if best.shape.whole else best.shape.memory_mib
            clients -= 1
        return gone


def _covered(shape: Shape, cpu: int, ram: int) -> float:
    """How much of what is missing of the host a tenant's leaving brings, at most 1 for each quantity."""
    covered = 0.0
    if cpu > 0:
        covered += min(1.0, shape.cpu_milli / cpu)
    if ram > 0:
        covered += min(1.0, shape.host_memory_mib / ram)
    return covered


def _promising(engine: Engine, column: Column, eligible: Any, most: int) -> list[int]:
    """Nodes nearest to taking the shape: least is missing of devices and host, relative to what the shape asks."""
    shape = column.shape
    nodes = eligible.nonzero()[0]
    missing = np.maximum(0, shape.cpu_milli - engine.cpu[nodes]) / max(shape.cpu_milli, 1)
    missing = missing + np.maximum(0, shape.host_memory_mib - engine.ram[nodes]) / max(shape.host_memory_mib, 1)
    if shape.devices:
        short = np.where(
            column.allowed[nodes], np.maximum(0, column.size[nodes] - engine.level[nodes]).astype(float), 1e6
        )
        short = np.sort(short, axis=1)[:, : shape.devices].sum(1)
        nodes, missing, short = nodes[short < 1e6], missing[short < 1e6], short[short < 1e6]
        missing = missing + short / max(1, shape.compute * shape.devices)
    order = np.lexsort((engine.sig[nodes], np.round(missing, 9)))
    return [int(n) for n in nodes[order[:most]]]
