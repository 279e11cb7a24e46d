"""An inventory on the indexed engine: `place` and `make_room` for fleets of any size, with an expected mix.

A `Fleet` is the working copy of one computation, like an `Occupancy`: built from an inventory, kept up to date as
slices come and go. It adds to the engine what has names: which node and device an index is, who lies where, which
groups' replicas to spread, which devices to avoid, which mechanism a device is bound to while in use.

Of the spots that fit, in this order of weight: devices that the request avoids come last; fewer replicas of the same
group on the device; fewer on the node; least cost by the adaptive policy (`adaptive`). With `spread=False` only the
cost counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np

from packer import words
from packer.adaptive import Adaptive
from packer.engine import UNBOUNDED, Bay, Column, Engine, Rack, Spot
from packer.inventory import Alternative, Device, Inventory, Move, MovePlan, Node, Placement, SliceRequest
from packer.mix import Mix, Shape, shape_of
from packer.tenants import Tenant, Tenants
from packer.topology import Links, links_of

_ALTERNATIVES: Final = 3
_AVOIDED: Final = 1_000
"""Replicas of the group that an avoided device counts for."""
_BITS: Final = 40
"""Devices of a node up to which a set of them is a machine's integer."""


class Fleet:
    """Placement on one evolving inventory by the adaptive policy."""

    def __init__(self, inventory: Inventory, mix: Mix, fixed: Collection[str] = (), spread: bool = True) -> None:
        self._inventory = inventory
        self._spread = spread
        self._fixed = frozenset(fixed)
        nodes = {n.name: n for n in inventory.nodes}
        by_node: dict[str, list[Device]] = {n.name: [] for n in inventory.nodes}
        for device in inventory.devices:
            by_node[device.node].append(device)
        self.nodes: tuple[Node, ...] = tuple(n for n in inventory.nodes if by_node[n.name])
        self.devices = tuple(tuple(by_node[n.name]) for n in self.nodes)
        self._index = {d.id: (i, j) for i, row in enumerate(self.devices) for j, d in enumerate(row)}
        self._links = [links_of(row) for row in self.devices]
        self._linked = any(links.any for links in self._links)
        kinds = {id(links): links for links in self._links}
        self._link_kinds = tuple(kinds.values())
        number = {key: k for k, key in enumerate(kinds)}
        self._link_kind = [number[id(links)] for links in self._links]
        racks = [_rack(nodes[n.name], row, k) for n, row, k in zip(self.nodes, self.devices, self._links, strict=True)]
        self._policy = Adaptive(mix)
        self.engine = Engine(racks, self._policy)
        self.tenants = Tenants(self.engine)
        self._placements: dict[int, Placement] = {}
        self._group_on_device: Counter[tuple[str, int, int]] = Counter()
        self._group_on_node: dict[str, Counter[int]] = {}
        self._at_node = {n.name: i for i, n in enumerate(self.nodes)}
        for placement in inventory.placements:
            self.take(placement)

    @classmethod
    def of(
        cls, inventory: Inventory, *, mix: Mix | None = None, fixed: Collection[str] = (), spread: bool = True
    ) -> Fleet:
        """The fleet with the mix to expect; without one, of what lies there now."""
        if mix is None or not mix.shapes:
            mix = Mix.recent(p.request for p in inventory.placements)
        return cls(inventory, mix, fixed, spread)

    def place(self, request: SliceRequest) -> Placement | None:
        """Place and count; None where the request fits nowhere."""
        shape = shape_of(request)
        column = self.engine.refresh(shape)
        spot = self._best(request, shape, column)
        if spot is None:
            return None
        placement = self._named(request, spot, column)
        self._put(placement)
        return placement

    def place_all(self, requests: Sequence[SliceRequest]) -> list[Placement | None]:
        """A placement for each request in the order given, largest placed first; None where nothing fits."""
        self._policy.begin(self.engine)
        largest = max((d.usable_mib for d in self._inventory.devices if d.usable_mib > 0), default=1)
        order = sorted(
            range(len(requests)),
            key=lambda i: (
                -requests[i].devices * max(requests[i].compute / 100, requests[i].memory_mib / largest),
                i,
            ),
        )
        found: dict[int, Placement | None] = {i: self.place(requests[i]) for i in order}
        return [found[i] for i in range(len(requests))]

    def take(self, placement: Placement) -> None:
        """Count what was placed elsewhere."""
        if any(d in self._index for d in placement.all_devices):
            self._put(placement)
        elif placement.node in self._at_node:
            # Its device is gone; it still counts against its node.
            request = placement.request
            host = Shape(devices=0, cpu_milli=request.cpu_milli, host_memory_mib=request.host_memory_mib)
            self.engine.take(host, Spot(self._at_node[placement.node], ()), _key(request.id))

    def make_room(self, request: SliceRequest, most: int) -> MovePlan | None:
        """Moves that let the request in, on top of what is placed; carried out here."""
        if (placement := self.place(request)) is not None:
            return MovePlan((), placement)
        before = dict(self._placements)
        found = self.tenants.make_room(shape_of(request), most)
        if found is None:
            return None
        steps, spot = found
        if len(spot.devices) > 1:
            # Of the devices that are free now the best linked.
            spot = self._on(request, shape_of(request), spot.node) or spot
        moves = []
        for step in steps:
            source = before[step.key]
            target = self._at(source.request, step.target, f"moved to make room for {request.id}")
            moves.append(Move(source, target))
            self._count(source, -1)
            self._count(target, 1)
            before[step.key] = self._placements[step.key] = target
        why = f"after {len(moves)} move{'s' if len(moves) > 1 else ''}"
        placement = self._at(request, spot, why)
        self._put(placement)
        return MovePlan(tuple(moves), placement)

    # --- defragmentation ---

    def best_move(self, weighed: int) -> tuple[float, tuple[int, Spot]] | None:
        """(gain, (mover, target)) of the move that gains most; None where nobody may move.

        The gain is the cost of the mover's place as if it were placed there now, less that of its new one, which may be
        on another node without a sibling or on another device of its own node without one.

        Movers on the emptiest nodes are weighed, at most so many: those whose leaving frees most.
        """
        engine = self.engine
        movers = [t for t in self.tenants.held.values() if t.movable]
        movers.sort(key=lambda t: (-int(engine.free[t.spot.node]), int(engine.sig[t.spot.node]), t.key))
        best: tuple[float, tuple[int, Spot]] | None = None
        for tenant in movers[:weighed]:
            request = self._placements[tenant.key].request
            source = tenant.spot.node
            held = self._group_on_node.get(request.group, Counter())
            shut = {i for i, n in held.items() if n > 0} | {source} if self._spread else {source}
            shut |= {self._index[d][0] for d in request.avoid if d in self._index}
            # Both slices are held for a while: what fits beside counts the mover where it lies.
            beside = self._beside(request, tenant)
            self.tenants.leave(tenant.key)
            here, _ = engine.weigh(tenant.shape, source, tenant.spot.devices)
            options = []
            if (elsewhere := engine.best(tenant.shape, shut)) is not None:
                options.append((float(engine.refresh(tenant.shape).cost[elsewhere.node]), elsewhere))
            if len(beside) >= tenant.shape.devices:
                options.append(engine.weigh(tenant.shape, source, beside))
            self.tenants.put(tenant)
            if options:
                there, target = min(options, key=lambda option: option[0])
                if best is None or here - there > best[0]:
                    best = here - there, (tenant.key, target)
        return best

    def _beside(self, request: SliceRequest, tenant: Tenant) -> list[int]:
        """Devices of the mover's own node that could take its sibling while it is still there, spread kept."""
        source = tenant.spot.node
        nodes, fits = self.engine.fits(self.engine.column(tenant.shape), np.array([source]))
        if not len(nodes) or not tenant.shape.devices:
            return []
        return [
            int(j)
            for j in fits[0].nonzero()[0]
            if j not in tenant.spot.devices
            and self.devices[source][j].id not in request.avoid
            and not (self._spread and self._group_on_device[request.group, source, int(j)])
        ]

    def carry_out(self, move: tuple[int, Spot]) -> Move:
        """Make before break."""
        key, target = move
        source = self._placements[key]
        self.tenants.move(key, target)
        moved = self._at(source.request, target, "moved: what it leaves is worth more to what is expected")
        self._count(source, -1)
        self._count(moved, 1)
        self._placements[key] = moved
        return Move(source, moved)

    # --- names ---

    def _put(self, placement: Placement) -> None:
        request = placement.request
        spots = [self._index[d] for d in placement.all_devices if d in self._index]
        key = _key(request.id)
        spot = Spot(spots[0][0], tuple(j for _, j in spots))
        # Whoever lies on linked devices stays there: moves look for room, not for links.
        stays = request.id in self._fixed or self._links[spot.node].strength(spot.devices)[0] > 0
        self.tenants.put(Tenant(key, shape_of(request), spot, not stays))
        self._placements[key] = placement
        self._count(placement, 1)

    def _count(self, placement: Placement, sign: int) -> None:
        group = placement.request.group
        for d in placement.all_devices:
            if d not in self._index:
                continue
            i, j = self._index[d]
            self._group_on_device[group, i, j] += sign
            self._group_on_node.setdefault(group, Counter())[i] += sign

    def _best(self, request: SliceRequest, shape: Shape, column: Column) -> Spot | None:
        by_links = self._linked and shape.devices > 1
        held = self._group_on_node.get(request.group, Counter())
        crowded = {i for i, n in held.items() if n > 0} if self._spread else set()
        crowded |= {self._index[d][0] for d in request.avoid if d in self._index}
        clean = self._best_linked(request, shape, crowded) if by_links else self.engine.best(shape, crowded)
        if clean is not None:
            return clean if by_links or not self._linked else self._loose(shape, clean)
        cost = column.cost
        options = []
        for i in sorted(crowded):
            if self.engine.spot_on(shape, i) is None or (spot := self._on(request, shape, i)) is None:
                continue
            rank = (
                any(self.devices[i][j].id in request.avoid for j in spot.devices),
                sum(self._group_on_device[request.group, i, j] for j in spot.devices) if self._spread else 0,
                held[i] if self._spread else 0,
                *(-s for s in self._links[i].strength(spot.devices)),
                float(cost[i]),
                int(self.engine.sig[i]),
            )
            options.append((rank, spot))
        return min(options, key=lambda o: o[0])[1] if options else None

    def _best_linked(self, request: SliceRequest, shape: Shape, shut: Collection[int]) -> Spot | None:
        """On the node whose devices with room are linked best; of nodes as good, where it costs least."""
        engine = self.engine
        nodes = np.arange(len(self.nodes))
        nodes, fits = engine.fits(engine.column(shape), np.setdiff1d(nodes, list(shut)) if shut else nodes)
        if not len(nodes):
            return None
        width = fits.shape[1]
        kind = np.int64 if width <= _BITS else object
        masks = fits.astype(kind) @ np.array([1 << j for j in range(width)], kind)
        masks += np.array(self._link_kind, kind)[nodes] * (1 << width)
        alike, which = np.unique(masks, return_inverse=True)
        bits = (1 << width) - 1
        ranks = [self._link_kinds[m >> width].rank(m & bits, shape.devices) for m in map(int, alike)]
        best = engine.best_of(shape, nodes[np.array(ranks, np.int64)[which] == max(ranks)])
        return self._on(request, shape, best)

    def _loose(self, shape: Shape, spot: Spot, able: Sequence[int] | None = None) -> Spot:
        """Of devices of the node that are empty and alike the one that others need least for their links.

        `able` are those that may be taken; None: all that the shape fits.
        """
        engine, i = self.engine, spot.node
        if not self._links[i].any or len(spot.devices) != 1:
            return spot
        (device,) = spot.devices
        empty = (engine.level[i] == engine.whole[i]) & (engine.whole[i] > 0)
        if not empty[device]:
            return spot
        if able is None:
            able = engine.fits(engine.column(shape), np.array([i]))[1][0].nonzero()[0].tolist()
        alike = [j for j in able if empty[j] and engine.kind[i, j] == engine.kind[i, device]]
        if len(alike) > 1:
            device = self._links[i].loosest(alike, empty.nonzero()[0].tolist(), self._state(i))
        return Spot(i, (device,))

    def _on(self, request: SliceRequest, shape: Shape, i: int) -> Spot | None:
        """Where on this node the request goes: avoided devices last, spread, then linked ones, then the fullest."""
        engine = self.engine
        nodes, fits = engine.fits(engine.column(shape), np.array([i]))
        if not len(nodes):
            return None
        if not shape.devices:
            return Spot(i, ())
        siblings = self._group_on_device if self._spread else Counter[tuple[str, int, int]]()
        burden = [
            _AVOIDED * (d.id in request.avoid) + siblings[request.group, i, j] for j, d in enumerate(self.devices[i])
        ]
        able, state = [int(j) for j in fits[0].nonzero()[0]], self._state(i)
        if shape.devices == 1:
            fullest = min(able, key=lambda j: (burden[j], state[j]))
            return self._loose(shape, Spot(i, (fullest,)), [j for j in able if burden[j] == burden[fullest]])
        return Spot(i, self._links[i].best(able, shape.devices, burden, state))

    def _state(self, i: int) -> list[tuple[int, int]]:
        """What each device of the node holds, the fullest least."""
        count, engine = len(self.devices[i]), self.engine
        return list(zip(engine.level[i, :count].tolist(), engine.device_sig[i, :count].tolist(), strict=True))

    def _at(self, request: SliceRequest, spot: Spot, why: str) -> Placement:
        ids = [self.devices[spot.node][j].id for j in spot.devices]
        return Placement(request, ids[0], self.nodes[spot.node].name, why=why, more_devices=tuple(ids[1:]))

    def _named(self, request: SliceRequest, spot: Spot, column: Column) -> Placement:
        ids = [self.devices[spot.node][j].id for j in spot.devices]
        cost = column.cost
        count = int(np.isfinite(cost).sum())
        nearest = np.argpartition(cost, min(_ALTERNATIVES, len(cost) - 1))[: _ALTERNATIVES + 1]
        others = [int(n) for n in nearest[np.argsort(cost[nearest], kind="stable")] if n != spot.node]
        node, j = spot.node, spot.devices[0]
        left = int(self.engine.memory[node, j]) - request.memory_mib
        compute = int(self.engine.compute[node, j]) - request.compute
        least = float(cost[node])
        held = self._group_on_node.get(request.group, Counter())
        apart_from = request.group if any(held.values()) and not held[node] else ""
        if len(ids) > 1:
            why = words.several_taken(count, least, self._joined(spot), apart_from)
        else:
            why = words.taken(count, least, left, compute, apart_from)
        return Placement(
            request,
            ids[0],
            self.nodes[node].name,
            score=-least,
            why=why,
            alternatives=tuple(
                self._alternative(request, n, int(column.device[n]), float(cost[n]), least, held[n])
                for n in others[:_ALTERNATIVES]
                if np.isfinite(cost[n])
            ),
            more_devices=tuple(ids[1:]),
        )

    def _joined(self, spot: Spot) -> str:
        return self._links[spot.node].words(spot.devices) if self._linked else f"{len(spot.devices)} devices"

    def _alternative(
        self, request: SliceRequest, node: int, device: int, cost: float, least: float, siblings: int
    ) -> Alternative:
        other = self.devices[node][device].id
        if request.devices > 1:
            _, fits = self.engine.fits(self.engine.column(shape_of(request)), np.array([node]))
            able = sum(1 << j for j in fits[0].nonzero()[0].tolist())
            linked = f"{self._links[node].best_words(able, request.devices)}; " if self._linked else ""
            why = words.passed_over(cost, least, siblings, request.group, avoided=False)
            return Alternative(f"node {self.nodes[node].name}", -cost, linked + why)
        avoided = other in request.avoid
        return Alternative(other, -cost, words.passed_over(cost, least, siblings, request.group, avoided))


def _rack(node: Node, devices: Sequence[Device], links: Links) -> Rack:
    host = frozenset(node.labels.items())
    bays = tuple(
        Bay(
            d.model,
            max(0, d.usable_mib),
            d.compute,
            d.max_clients if d.healthy and node.schedulable else 0,
            host | frozenset(d.labels.items()),
            d.mechanisms,
        )
        for d in devices
    )
    return Rack(
        UNBOUNDED if node.cpu_milli is None else node.cpu_milli,
        UNBOUNDED if node.memory_mib is None else node.memory_mib,
        bays,
        links.signature,
    )


def _key(instance: str) -> int:
    return int.from_bytes(blake2b(instance.encode(), digest_size=7).digest(), "big")
