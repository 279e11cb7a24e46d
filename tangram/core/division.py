"""Who gets how many replicas of a fleet that cannot hold all that is wanted: autoscaler and packer decide together.

The autoscaler's `quota` says what each model's next replica is worth (late requests that it spares, weighed by priority
and by what the model was refused of late); the packer says what fits. Nobody's word stands alone:

    greedy     every model that wants any gets one, then its least count, highest priority first; then the next replica
               goes to whom it is worth most for its share of the fleet, as long as the packer finds a place
    exact      `quota.share` of as many replicas as greedy found room for, taken where the packer can place it and it
               does less harm: it divides better where slices are alike
    standing   what was granted before, plus whatever room is left over

Of greedy and exact the better one is proposed: fewest models with nothing, then fewest below their least count (both
highest priority first), then least harm. Harm done by taking away what a model holds counts several times (quota.py),
and what has only just become ready is not taken, unless a model would have nothing or too little. So replicas are not
handed to and fro for a little more or less. Nor is a division made anew while it is being carried out, as long as the
same is wanted.

A replica that runs keeps its place or leaves; it is never moved for a division. Replicas that drain may come back,
unless they have moved, and count as gone otherwise. Models in the middle of a rollout are left alone: they hold what
they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Final

from autoscaler import quota
from autoscaler.quota import Claim
from packer.fit import windows
from packer.inventory import Inventory, Placement, SliceRequest
from packer.mix import Shape, shape_of
from packer.occupancy import DeviceTally, Occupancy
from packer.place import place_into
from tangram.core.convert import slice_request
from tangram.core.plans import Desired, Division, Share
from tangram.core.replica import Phase, Replica, moved_away, victims

#: Seconds for which a replica that has become ready is not taken away for less harm elsewhere.
RESIDENCY_S: Final = 20.0
#: Replicas of the smallest model that one of another counts for at most.
_MOST_UNITS: Final = 100
_EPSILON: Final = 1e-9


def divide(
    desired: Mapping[str, Desired],
    replicas: Sequence[Replica],
    inventory: Inventory,
    before: Division | None,
    now: float,
) -> Division:
    """Divide the fleet (its placements do not count) among the models with a claim; `before` is what stood so far."""
    live: dict[str, list[Replica]] = {}
    draining: dict[str, list[Replica]] = {}
    moved = moved_away(replicas)
    for replica in replicas:
        if replica.live:
            live.setdefault(replica.model, []).append(replica)
        elif replica.phase is Phase.DRAINING and replica.name not in moved:
            draining.setdefault(replica.model, []).append(replica)
    pool = {n: d for n, d in desired.items() if d.claim is not None and _is_settled(d, live.get(n, []))}
    top = max((d.model.spec.priority for d in pool.values()), default=0)
    granted = {n: s.granted for n, s in before.shares.items()} if before is not None else {}
    first = {n: granted.get(n, len(live.get(n, []))) for n in pool}
    claims = {n: _relative(d, top, first[n]) for n, d in pool.items()}
    if before is not None and (standing := _standing(before, claims, live, draining, now)) is not None:
        return standing
    others = [r.placement for n, there in live.items() if n not in pool for r in there]
    staying = {
        n: [
            *reversed(victims(live.get(n, []), len(live.get(n, [])))),
            *sorted(draining.get(n, []), key=lambda r: (-r.since, r.name)),
        ]
        for n in pool
    }
    book = _Book(
        claims,
        {n: slice_request(d.model, f"{n}-new") for n, d in pool.items()},
        {n: [r.placement for r in there] for n, there in staying.items()},
        Inventory(inventory.nodes, inventory.devices, tuple(others)),
    )
    best = book.greedy(first)
    *short, _ = book.rank(best)
    # Where nobody has too little, models with replicas that are not yet worth their start keep what they have.
    young = {r.model for there in staying.values() for r in there if r.live and not _is_settled_in(r, now)}
    proposal = book.best() if any(map(any, short)) or not young else book.keeping({n: first[n] for n in young}).best()
    if _is_better(book, proposal, best, staying, now):
        best = proposal
    return Division(claims, {n: _share(claims[n], best, [r.name for r in staying[n]]) for n in pool}, now)


def _standing(
    before: Division,
    claims: Mapping[str, Claim],
    live: Mapping[str, Sequence[Replica]],
    draining: Mapping[str, Sequence[Replica]],
    now: float,
) -> Division | None:
    """The division that stands, less what has been started; None where it is to be made anew.

    It stands while it is being carried out and the same is wanted, and for a while where nothing at all has changed.
    """
    if {n: (c.wanted, c.floor, c.priority) for n, c in claims.items()} != {
        n: (c.wanted, c.floor, c.priority) for n, c in before.claims.items()
    }:
        return None
    shares, leaving = {}, False
    for name, share in before.shares.items():
        there, going = live.get(name, ()), draining.get(name, ())
        if not share.keep <= {r.name for r in (*there, *going)}:
            return None
        places = list(share.places)
        for replica in there:
            if replica.name in share.keep:
                continue
            where = (replica.placement.all_devices, replica.placement.mig)
            match = next((p for p in places if (p.all_devices, p.mig) == where), None)
            if match is None:
                return None
            places.remove(match)
        leaving = leaving or any(r.name not in share.keep for r in going)
        shares[name] = replace(share, keep=share.keep | {r.name for r in there}, places=tuple(places))
    under_way = leaving and any(s.places for s in shares.values())
    if not under_way and (claims != before.claims or now - before.made_at >= RESIDENCY_S):
        return None
    return Division(before.claims, shares, before.made_at)


def _is_settled(want: Desired, live: Sequence[Replica]) -> bool:
    names = {r.name for r in live}
    moving = any(r.replaces in names for r in live)
    return not want.canary and not moving and all(r.revision == want.model.revision for r in live)


def _relative(want: Desired, top: int, held: int) -> Claim:
    """The claim with its priority below the highest, so that weights of two to its power stay finite."""
    assert want.claim is not None
    return replace(want.claim, wanted=want.count, priority=want.model.spec.priority - top, held=held)


def _is_settled_in(replica: Replica, now: float) -> bool:
    return replica.phase is Phase.READY and now - replica.since >= RESIDENCY_S


def _share(claim: Claim, deal: _Deal, there: Sequence[str]) -> Share:
    worth, granted = quota.values(claim), deal.counts[claim.name]
    value = worth[granted] if granted < claim.wanted else 0.0
    return Share(claim.wanted, granted, value, deal.kept.intersection(there), deal.places[claim.name])


def _is_better(book: _Book, best: _Deal, standing: _Deal, staying: Mapping[str, Sequence[Replica]], now: float) -> bool:
    (*wants, harm), (*wants_now, harm_now) = book.rank(best), book.rank(standing)
    if wants != wants_now:
        return wants < wants_now
    going = standing.kept - best.kept
    leaving = [r for there in staying.values() for r in there if r.name in going]
    return harm_now - harm > _EPSILON and all(_is_settled_in(r, now) for r in leaving)


@dataclass(frozen=True, slots=True)
class _Deal:
    """Counts that the packer can place."""

    counts: Mapping[str, int]
    kept: frozenset[str]
    """Replicas that stay."""
    places: Mapping[str, tuple[Placement, ...]]
    """Of the new ones."""


class _Book:
    """What is asked, who is there, and trials against the packer."""

    def __init__(
        self,
        claims: Mapping[str, Claim],
        requests: Mapping[str, SliceRequest],
        there: Mapping[str, Sequence[Placement]],
        empty: Inventory,
        cost: Mapping[str, float] | None = None,
    ) -> None:
        self.claims = claims
        self._requests = requests
        self._there = there
        self._empty = empty
        self._harms = {n: quota.harms(c) for n, c in claims.items()}
        self._worth = {n: quota.chords(h) for n, h in self._harms.items()}
        self._cost = _costs(requests, empty) if cost is None else cost
        self._by_priority = sorted(claims, key=lambda n: (-claims[n].priority, n))
        self._levels = sorted({c.priority for c in claims.values()}, reverse=True)

    def best(self) -> _Deal:
        """The better one of greedy and exact, whoever is there now."""
        greedy = self.greedy({})
        units = self._units()
        claims = [replace(c, cost=units[n]) for n, c in self.claims.items()]
        counts = quota.share(claims, sum(count * units[n] for n, count in greedy.counts.items()))
        exact = self.exactly({g.name: g.replicas for g in counts})
        return min((d for d in (greedy, exact) if d is not None), key=self.rank)

    def _units(self) -> dict[str, int]:
        """What a replica of each model counts: as many as the smallest would have room for in its place."""
        if not any(r.whole for r in self._requests.values()):
            return dict.fromkeys(self.claims, 1)
        least = min(self._cost.values())
        return {n: min(_MOST_UNITS, round(cost / least)) for n, cost in self._cost.items()}

    def keeping(self, counts: Mapping[str, int]) -> _Book:
        """The same, with so many as the least counts of these models."""
        claims = {n: replace(c, floor=max(c.floor, counts.get(n, 0))) for n, c in self.claims.items()}
        return _Book(claims, self._requests, self._there, self._empty, self._cost)

    def rank(self, deal: _Deal) -> tuple[tuple[int, ...], tuple[int, ...], float]:
        """Less is better: models with nothing, replicas below the least counts (by priority), harm."""
        nothing, below = [], []
        for level in self._levels:
            claims = [c for c in self.claims.values() if c.priority == level and c.wanted]
            nothing.append(sum(deal.counts[c.name] == 0 for c in claims))
            below.append(sum(max(0, min(c.floor, c.wanted) - deal.counts[c.name]) for c in claims))
        harm = math.fsum(harms[deal.counts[name]] for name, harms in self._harms.items())
        return tuple(nothing), tuple(below), harm

    def greedy(self, first: Mapping[str, int]) -> _Deal:
        """`first` as far as it is wanted and fits, then one each, the least counts, and by worth."""
        trial = _Trial(self._requests, self._there, self._empty)
        for step in (first, dict.fromkeys(self.claims, 1), {n: c.floor for n, c in self.claims.items()}):
            for name in self._by_priority:
                wanted = min(self.claims[name].wanted, step.get(name, 0))
                while trial.counts[name] < wanted and trial.one_more(name):
                    pass
        open_ = [e for n in self.claims if (e := self._next(n, trial.counts[n])) is not None]
        heapify(open_)
        while open_:
            _, _, name = heappop(open_)
            if trial.one_more(name) and (entry := self._next(name, trial.counts[name])) is not None:
                heappush(open_, entry)
        return trial.deal()

    def exactly(self, counts: Mapping[str, int]) -> _Deal | None:
        """These counts; None where the packer finds no place for them."""
        trial = _Trial(self._requests, self._there, self._empty)
        # Who stays comes first, so that nobody new takes a place that is kept.
        for kept_only in (True, False):
            for name in self._by_priority:
                most = min(counts[name], len(self._there[name])) if kept_only else counts[name]
                while trial.counts[name] < most:
                    if not trial.one_more(name):
                        return None
        return trial.deal()

    def _next(self, name: str, count: int) -> tuple[float, float, str] | None:
        worth = self._worth[name]
        return (-worth[count] / self._cost[name], -self.claims[name].priority, name) if count < len(worth) else None


class _Trial:
    """One attempt to fill the fleet.

    Of each model the replicas that are there are kept in order, before any new one is placed. What has to leave for
    another model is not replaced elsewhere: that would be a move.
    """

    def __init__(
        self, requests: Mapping[str, SliceRequest], there: Mapping[str, Sequence[Placement]], empty: Inventory
    ) -> None:
        self._requests = requests
        self._there = there
        self._held = Occupancy(empty)
        self._around = Occupancy(empty)
        """With what runs and nobody has been granted."""
        for placements in there.values():
            for placement in placements:
                self._around.add(placement)
        self._shapes = {name: shape_of(request) for name, request in requests.items()}
        self._full: set[Shape] = set()
        self._crowded: set[Shape] = set()
        """Shapes that fit only in place of what runs."""
        self._roomy: dict[Shape, list[DeviceTally]] = {}
        """Devices of `_held` that may have room for a shape: nothing there ever goes."""
        self._roomy_around: dict[Shape, list[DeviceTally]] = {}
        """The same of `_around`, until something goes."""
        self._displaced: set[str] = set()
        self._asked = dict.fromkeys(requests, 0)
        """How many of those that are there were asked to stay."""
        self._lost: set[str] = set()
        """Models of which some had to leave."""
        self.counts = dict.fromkeys(requests, 0)
        self._kept: set[str] = set()
        self._places: dict[str, tuple[Placement, ...]] = dict.fromkeys(requests, ())

    def one_more(self, name: str) -> bool:
        """One replica more of the model: one that is there, or a new one where the packer finds a place."""
        there = self._there[name]
        for placement in there[self._asked[name] :]:
            self._asked[name] += 1
            if placement.request.id not in self._displaced:
                if self._has_room(placement):
                    self._held.add(placement)
                    self._kept.add(placement.request.id)
                    self.counts[name] += 1
                    return True
                self._leave(placement)
            self._lost.add(name)
        if name in self._lost or not self._place(name):
            return False
        self.counts[name] += 1
        return True

    def deal(self) -> _Deal:
        return _Deal(self.counts, frozenset(self._kept), self._places)

    def _place(self, name: str) -> bool:
        request = replace(self._requests[name], id=f"{name}-new{self.counts[name]}")
        if (shape := self._shapes[name]) in self._full:
            return False
        # Where all that runs may stay, it does; else it goes in place of what nobody has been granted.
        found = None
        if shape not in self._crowded:
            found = place_into(self._around, request, _able(self._around, shape, self._roomy_around))
        if found is None:
            self._crowded.add(shape)
            found = place_into(self._held, request, _able(self._held, shape, self._roomy))
        if found is None:
            self._full.add(shape)
            return False
        self._held.add(found)
        self._displace(found)
        self._around.add(found)
        self._places[name] += (found,)
        return True

    def _displace(self, new: Placement) -> None:
        """Of what nobody has been granted, what has no room beside the new one is gone."""
        host = self._around.nodes.get(new.node)
        near = {i for t in (host.devices if host is not None else ()) for i in t.requests}
        idle = [self._around.holders[i] for i in sorted(near) if i not in self._held.holders]
        beside = []
        for placement in idle:
            if self._has_room(placement):
                self._held.add(placement)
                beside.append(placement.request.id)
            else:
                self._leave(placement)
        for name in beside:
            self._held.remove(name)

    def _leave(self, placement: Placement) -> None:
        self._displaced.add(placement.request.id)
        self._around.remove(placement.request.id)
        self._crowded.clear()
        self._roomy_around.clear()

    def _has_room(self, placement: Placement) -> bool:
        """Whether what runs there still does beside what is held. That it may run there at all is not asked again."""
        request, host = placement.request, self._held.nodes.get(placement.node)
        if host is not None and (
            (host.free_cpu_milli is not None and host.free_cpu_milli < request.cpu_milli)
            or (host.free_host_memory_mib is not None and host.free_host_memory_mib < request.host_memory_mib)
        ):
            return False
        for number, device in enumerate(placement.all_devices):
            tally = self._held.devices.get(device)
            if tally is None:
                continue
            free_mib = tally.free_mib - request.takes_mib(tally.device)
            if min(free_mib, tally.free_compute - request.compute, tally.free_clients) < 0:
                return False
            if any(mechanism != request.mechanism for mechanism in tally.mechanisms):
                return False
            if not tally.free_clients or (placement.mig and placement.mig[number] not in windows(tally, request)):
                return False
        return True


def _able(fleet: Occupancy, shape: Shape, known: dict[Shape, list[DeviceTally]]) -> list[DeviceTally]:
    """The devices with room enough, of those known to be the only ones."""
    memory, compute = shape.memory_mib, shape.compute
    devices = known.get(shape, fleet.devices.values())
    known[shape] = able = [t for t in devices if t.free_mib >= memory and t.free_compute >= compute]
    return able


def _costs(requests: Mapping[str, SliceRequest], fleet: Inventory) -> dict[str, float]:
    """The greatest share of the fleet that one slice of each takes: of memory, of compute or of clients."""
    memory = sum(d.usable_mib for d in fleet.devices) or 1
    compute = sum(d.compute for d in fleet.devices) or 1
    clients = sum(d.max_clients for d in fleet.devices) or 1
    return {
        name: request.devices * max(request.memory_mib / memory, request.compute / compute, 1.0 / clients)
        for name, request in requests.items()
    }
