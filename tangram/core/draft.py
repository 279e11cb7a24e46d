"""One planning run: the rules of planner.py, model by model, against one evolving ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from packer.defrag import LONGEST, defragment
from packer.inventory import Move, NoFit, Placement
from packer.ledger import Ledger, LedgerError
from packer.mix import Shape, shape_of
from packer.moves import Search
from packer.place import Placer
from tangram.core.convert import in_words, slice_request
from tangram.core.loans import resizes
from tangram.core.movers import RESIDENCY_S, movers, whose_leaving_helps
from tangram.core.partitions import with_repartitions
from tangram.core.plans import (
    Action,
    Attempts,
    Desired,
    Drain,
    Observed,
    Plan,
    Resize,
    Start,
    Stop,
    Undrain,
    apply,
)
from tangram.core.replica import Phase, Replica, moved_away, victims
from tangram.spec import Model

#: Seconds a device is avoided by a model after a start there passed its progress deadline.
AVOID_S: Final = 600.0
#: Seconds the replicas of a deleted model may finish what is in flight (its own setting is gone with it).
REMOVED_DRAIN_S: Final = 30.0
#: Seconds before the next attempt after the n-th start in a row that passed its deadline; the last one repeats.
ATTEMPT_DELAYS_S: Final = (1.0, 10.0, 30.0, 60.0, 120.0, 300.0)
#: Moves that one plan may consist of, and moves an hour: each costs a start and its memory twice for a moment.
MOVES_A_PLAN: Final = 4
MOVES_AN_HOUR: Final = 60
ROOM: Final = "room is being made"


class Draft:
    """One planning run: collects actions against one evolving ledger."""

    def __init__(self, observed: Observed, ledger: Ledger, now: float) -> None:
        self._observed = observed
        self._ledger = ledger
        self._now = now
        self._actions: list[Action] = []
        self._refusals: dict[str, tuple[NoFit, ...]] = {}
        self._waiting: dict[str, str] = {}
        self._attempts: dict[str, Attempts] = {}
        self._ordinals = dict(observed.next_ordinal)
        self._moves_left = MOVES_AN_HOUR - observed.moves_lately
        self._desired: dict[str, Desired] = {}
        self._places: Placer | None = None
        """The same slices as the ledger's, once a place was looked for."""
        self._full: dict[Shape, NoFit] = {}
        """Why slices of a shape find no place."""
        self._stuck: set[Shape] = set()
        """Shapes for which no moves make room."""
        self._health = {d.id: d.healthy for d in ledger.devices}
        self._soon: dict[Shape, str] = {}
        """Shapes for which moves will make room that cannot begin yet, in words."""
        self._searches: dict[tuple[int, int], Search] = {}
        live = {r.name for r in observed.replicas if r.live}
        self._moving = [r for r in observed.replicas if r.live and r.replaces in live]
        self._leaving = len(live) < len(observed.replicas)
        self._looked: tuple[int, tuple[dict[str, Replica], dict[str, Replica], int]] | None = None
        """What `_lie` said after so many actions."""

    def finish(self) -> Plan:
        actions = with_repartitions(self._actions, [r.placement for r in self._observed.replicas])
        return Plan(actions, self._refusals, self._waiting, self._attempts)

    def expect(self, desired: Mapping[str, Desired]) -> None:
        """All that is wanted: who moves is started anew by its own model."""
        self._desired.update(desired)

    # --- one model ---

    def remove(self, replicas: Sequence[Replica]) -> None:
        for replica in self._finish_drains(replicas, REMOVED_DRAIN_S):
            self._let_go(replica, "the model was deleted")

    def settle(self, want: Desired, replicas: Sequence[Replica]) -> None:
        model, revision = want.model, want.model.revision
        live = self._finish_drains(replicas, model.spec.traffic.drain_seconds)
        live = self._end_overdue(model, live)
        broken = {r.name: why for r in live if (why := self._broken(r))}
        live = self._stop_broken(live, broken)
        self._retry_crashed(model, live)
        live, siblings = self._follow_moves(live)
        new = [r for r in live if r.revision == revision]
        old = [r for r in live if r.revision != revision]
        if want.canary and want.stable is not None:
            self._hold_canary(want, want.stable, new, old, replicas)
        elif old:
            self._roll(want, new, old, replicas)
        elif len(new) < want.count:
            self._grow(want, want.count - len(new), replicas)
        elif len(new) > want.count:
            why = f"{want.wanted}, {len(new)} there"
            for replica in siblings:
                self._let_go(replica, f"its move is off: {why}")
            keep = want.dealt.keep if want.dealt is not None else frozenset()
            first = ({r.name for r in new} - keep if keep else set()) | broken.keys()
            for replica in victims(new, len(new) - want.count, first):
                self._let_go(replica, why)
                new.remove(replica)
        self._evacuate(model, [r for r in new if r.name in broken], broken, siblings)

    def _finish_drains(self, replicas: Sequence[Replica], drain_s: float) -> list[Replica]:
        for replica in replicas:
            if replica.phase is not Phase.DRAINING:
                continue
            if replica.name in self._observed.drained:
                self._stop(replica, f"drained: {replica.message}")
            elif self._now - replica.since >= drain_s:
                self._stop(replica, f"drained for {drain_s:g} s with requests still in flight: {replica.message}")
        return [r for r in replicas if r.live]

    def _end_overdue(self, model: Model, live: Sequence[Replica]) -> list[Replica]:
        deadline = model.spec.runtime.progress_deadline_seconds
        kept: list[Replica] = []
        attempts = self._observed.attempts.get(model.name, Attempts())
        changed = False
        for replica in live:
            waits_since = replica.since if replica.phase is Phase.UNREADY else replica.progress_since
            if replica.phase is not Phase.READY and self._now - waits_since >= deadline:
                self._stop(replica, f"not ready for {deadline:g} s: {replica.message or 'no answer'}")
                delay = ATTEMPT_DELAYS_S[min(attempts.failed, len(ATTEMPT_DELAYS_S) - 1)]
                avoid = {d: t for d, t in attempts.avoid.items() if t > self._now}
                avoid |= dict.fromkeys(replica.placement.all_devices, self._now + AVOID_S)
                attempts = Attempts(attempts.failed + 1, self._now, self._now + delay, avoid)
                changed = True
            else:
                kept.append(replica)
                if attempts.failed and replica.ready_at is not None and replica.ready_at > attempts.failed_at:
                    attempts = replace(attempts, failed=0, retry_at=0.0)
                    changed = True
        if changed:
            self._attempts[model.name] = attempts
        return kept

    def _broken(self, replica: Replica) -> str:
        """Which of its devices is not well, in words; empty where all are."""
        for device in replica.placement.all_devices:
            if not self._health.get(device, False):
                return f"{device} is unhealthy" if device in self._health else f"{device} is gone"
        return ""

    def _stop_broken(self, live: Sequence[Replica], broken: Mapping[str, str]) -> list[Replica]:
        """Who is not ready on a device that is not well is not waited for; returns who is left."""
        gone = [r for r in live if r.name in broken and r.phase is not Phase.READY]
        for replica in gone:
            self._stop(replica, broken[replica.name])
        return [r for r in live if r not in gone]

    def _evacuate(
        self, model: Model, leaving: Sequence[Replica], broken: Mapping[str, str], siblings: Sequence[Replica]
    ) -> None:
        """Who is ready on a device that is not well serves on until its sibling elsewhere is ready."""
        attempts = self._attempts.get(model.name) or self._observed.attempts.get(model.name, Attempts())
        replaced = {r.replaces for r in siblings}
        for replica in leaving if attempts.retry_at <= self._now else ():
            if replica.name in replaced:
                continue
            avoid = frozenset(d for d, until in attempts.avoid.items() if until > self._now)
            name = f"{model.name}-{self._ordinals.get(model.name, 1)}"
            self._places = self._places or Placer(self._ledger.inventory(), self._observed.mix)
            (found,) = self._places.place([slice_request(model, name, avoid)])
            if isinstance(found, NoFit):
                self._waiting[model.name] = f"{replica.name} has nowhere to go, and {broken[replica.name]}: {found}"
                return
            self._begin(model, found, f"takes over from {replica.name}: {broken[replica.name]}", replaces=replica.name)

    def _follow_moves(self, live: Sequence[Replica]) -> tuple[list[Replica], list[Replica]]:
        """Let those drain whose sibling is ready. Returns who counts, and the siblings that do not yet."""
        there = {r.name: r for r in live}
        moved = {r.replaces for r in live if r.replaces in there and r.phase is Phase.READY}
        for replica in live:
            if replica.replaces in moved:
                self._let_go(there[replica.replaces], f"moved to {in_words(replica.placement)} as {replica.name}")
        left = [r for r in live if r.name not in moved]
        names = {r.name for r in left}
        siblings = [r for r in left if r.replaces in names]
        return [r for r in left if r not in siblings], siblings

    def _retry_crashed(self, model: Model, live: Sequence[Replica]) -> None:
        for replica in live:
            due = replica.phase is Phase.CRASHED and replica.retry_at is not None and replica.retry_at <= self._now
            if due and replica.revision == model.revision:
                again = replace(
                    replica, phase=Phase.STARTING, since=self._now, retry_at=None, restarts=replica.restarts + 1
                )
                self._actions.append(Start(again, f"starts again after: {replica.message}", again=True))

    def _grow(self, want: Desired, missing: int, replicas: Sequence[Replica]) -> int:
        """Get up to `missing` more replicas of the wanted revision; returns how many were gotten."""
        # Who has moved does not come back: its room is for another.
        left = moved_away(replicas) | {a.replica for a in self._actions if isinstance(a, Stop)}
        revision = want.model.revision
        draining = [r for r in replicas if r.phase is Phase.DRAINING and r.revision == revision and r.name not in left]
        if want.dealt is not None:
            draining = [r for r in draining if r.name in want.dealt.keep]
        draining.sort(key=lambda r: (-r.since, r.name))
        back = draining[:missing]
        for replica in back:
            self._actions.append(Undrain(replica.name, replica.model, f"{want.wanted} again"))
        missing -= len(back)
        return len(back) + (self._start(want, missing) if missing > 0 else 0)

    def _start(self, want: Desired, missing: int) -> int:
        model = want.model
        attempts = self._attempts.get(model.name) or self._observed.attempts.get(model.name, Attempts())
        if attempts.retry_at > self._now:
            self._waiting[model.name] = (
                f"{attempts.failed} start{'s' if attempts.failed > 1 else ''} in a row passed the progress deadline; "
                f"next attempt in {attempts.retry_at - self._now:.0f} s"
            )
            return 0
        if want.dealt is not None:
            return self._start_dealt(want, want.dealt.places[:missing])
        shape = shape_of(slice_request(model, model.name))
        if (full := self._full.get(shape)) is not None:
            # Within a plan nothing is given back: what had no room for a slice like this has none now.
            again = replace(full, request=slice_request(model, f"{model.name}-{self._ordinals.get(model.name, 1)}"))
            self._refusals[model.name] = (again,) * missing
            self._make_room(model, again, attempts)
            return 0
        avoid = frozenset(d for d, until in attempts.avoid.items() if until > self._now)
        placer = self._places = self._places or Placer(self._ledger.inventory(), self._observed.mix)
        # One more than there is room for tells why the rest found no place.
        asked = min(missing, placer.room(slice_request(model, model.name), missing) + 1)
        first = self._ordinals.get(model.name, 1)
        requests = [slice_request(model, f"{model.name}-{first + i}", avoid) for i in range(asked)]
        refusal: NoFit | None = None
        started = 0
        for outcome in placer.place(requests):
            if isinstance(outcome, NoFit):
                refusal = outcome
            else:
                self._begin(model, outcome, want.wanted)
                started += 1
        if refusal is not None:
            self._full[shape] = refusal
            self._refusals[model.name] = (refusal,) * (missing - started)
            self._make_room(model, refusal, attempts)
        return started

    def _start_dealt(self, want: Desired, places: Sequence[Placement]) -> int:
        """Start where the division says, as far as who leaves has gone."""
        model, started = want.model, 0
        for placement in places:
            request = slice_request(model, f"{model.name}-{self._ordinals.get(model.name, 1)}")
            try:
                self._begin(model, replace(placement, request=request), want.wanted)
            except LedgerError:
                self._waiting[model.name] = ROOM
            else:
                started += 1
        return started

    def _begin(self, model: Model, placement: Placement, why: str, replaces: str = "") -> None:
        """Reserve the slice and start a new replica on it."""
        self._ledger = self._ledger.reserve(placement)
        if self._places is not None and not self._places.holds(placement.request.id):
            self._places.take(placement)
        replica = Replica(
            name=placement.request.id,
            model=model.name,
            revision=model.revision,
            placement=placement,
            created_at=self._now,
            since=self._now,
            progress_since=self._now,
            replaces=replaces,
        )
        number = int(replica.name.rpartition("-")[2])
        self._ordinals[model.name] = max(self._ordinals.get(model.name, 1), number + 1)
        self._actions.append(Start(replica, why))

    # --- moves ---

    def _make_room(self, model: Model, refusal: NoFit, attempts: Attempts) -> None:
        """Begin what would let the refused replica in: the moves of the packer's plan that fit right now."""
        begun = [a.replica for a in self._actions if isinstance(a, Start) and a.replica.replaces]
        under_way = [*self._moving, *begun]
        if under_way:
            moving = ", ".join(f"{r.replaces} to {in_words(r.placement)}" for r in under_way)
            self._waiting[model.name] = f"room is being made: {moving}"
            return
        if refusal.permanent or self._leaving or self._moves_left <= 0:
            return
        movable, young, lie = self._lie()
        searched = hash((refusal.request.id.rpartition("-")[0], lie))
        if attempts.searched == searched:
            return
        # Within a plan nothing is given back: where no moves let in a slice like this, none do now.
        shape = shape_of(refusal.request)
        if (later := self._soon.get(shape)) is not None:
            self._waiting[model.name] = later
            return
        stuck = shape in self._stuck
        found = () if stuck else self._search(refusal, movable)
        if not found and not stuck and (later_moves := self._search(refusal, {**movable, **young}) if young else ()):
            # Nobody loses a replica for what a move will do in a moment.
            names = ", ".join(sorted(young.keys() & {m.instance for m in later_moves}))
            self._soon[shape] = f"room is being made: {names} may move once ready for {RESIDENCY_S:g} s"
            self._waiting[model.name] = self._soon[shape]
            return
        if not found:
            self._stuck.add(shape)
            self._attempts[model.name] = replace(self._attempts.get(model.name, attempts), searched=searched)
            return
        moved = []
        for move in found:
            try:
                self._move(move, movable, f"so that {model.name} fits")
            except LedgerError:
                # It fits after the ones before it: the next plan begins it.
                break
            moved.append(f"{move.instance} from {in_words(move.source)} to {in_words(move.target)}")
        self._waiting[model.name] = f"room is being made: {', '.join(moved)}"

    def _search(self, refusal: NoFit, movable: Collection[str]) -> Sequence[Move]:
        """Moves of these replicas that let the refused one in; none where there are none."""
        if not movable:
            return ()
        # Between two actions the same may move, or with the young ones more.
        key = (len(self._actions), len(movable))
        if (search := self._searches.get(key)) is None:
            inventory = self._ledger.inventory()
            fixed = {p.request.id for p in inventory.placements}.difference(movable)
            search = self._searches[key] = Search(inventory, fixed, self._observed.mix)
        found = search.make_room(refusal.request, min(MOVES_A_PLAN, self._moves_left))
        return found.moves if found is not None else ()

    def lend(self) -> None:
        """Slices that grow, or are taken back what they had, before anything is started in its place."""
        replicas = apply(self._observed.replicas, self._actions, self._now)
        self._actions[:0] = resizes(self._desired, replicas, self._ledger)

    def tidy(self) -> None:
        """Begin a move that pays for itself, when there is nothing else to do."""
        busy = self._actions or self._refusals or self._moves_left <= 0
        mix = self._observed.mix
        if busy or mix is None or not mix.shapes or any(not r.live or r.replaces for r in self._observed.replicas):
            return
        inventory = self._ledger.inventory()
        movable, _ = self._movable()
        fixed = {p.request.id for p in inventory.placements} - movable.keys()
        # The first of a run; those after it pay by themselves once it is done.
        for move in defragment(inventory, mix, fixed=fixed, most=min(LONGEST, self._moves_left))[:1]:
            self._move(move, movable, "so that what is left over is of more use")

    def _move(self, move: Move, movable: Mapping[str, Replica], why: str) -> None:
        """Start the sibling of one that moves. Raises LedgerError where it does not fit yet."""
        mover = self._desired[movable[move.instance].model].model
        name = f"{mover.name}-{self._ordinals.get(mover.name, 1)}"
        target = replace(move.target, request=replace(move.target.request, id=name))
        self._begin(mover, target, f"moves {move.instance} {why}", replaces=move.instance)
        self._moves_left -= 1

    def _lie(self) -> tuple[dict[str, Replica], dict[str, Replica], int]:
        """Who may move, who soon may, and a hash of that, the fleet and where all lie; kept between two actions."""
        if self._looked is None or self._looked[0] != len(self._actions):
            movable, young = self._movable()
            where = sorted((p.request.id, p.all_devices) for p in self._ledger.inventory().placements)
            fleet = sorted((d.id, d.healthy, d.usable_mib, d.max_clients) for d in self._ledger.devices)
            counts = (*sorted(movable), "", *sorted(young), min(MOVES_A_PLAN, self._moves_left))
            digest = hash((tuple(where), tuple(fleet), counts))
            self._looked = len(self._actions), (movable, young, digest)
        return self._looked[1]

    def _movable(self) -> tuple[dict[str, Replica], dict[str, Replica]]:
        touched = {a.replica for a in self._actions if isinstance(a, Drain | Undrain | Stop | Resize)}
        return movers(self._observed.replicas, self._desired, touched, self._now)

    def _roll(self, want: Desired, new: list[Replica], old: list[Replica], replicas: Sequence[Replica]) -> None:
        count, revision = want.count, want.model.revision
        for replica in [r for r in old if r.phase is not Phase.READY]:
            self._let_go(replica, f"replaced by revision {revision}")
            old.remove(replica)
        for replica in victims(new, len(new) - count):
            self._let_go(replica, f"{want.wanted}, {len(new)} there")
            new.remove(replica)
        ready_new = sum(r.phase is Phase.READY for r in new)
        replaced = victims(old, ready_new + len(old) - count)
        for replica in replaced:
            self._let_go(replica, f"replaced by revision {revision}")
            old.remove(replica)
        missing = count - len(new)
        surge = count + 1 - len(new) - len(old)
        if missing <= 0:
            return
        gotten = self._grow(want, min(missing, surge), replicas) if surge > 0 else 0
        leaving = bool(replaced) or any(r.phase in (Phase.DRAINING, Phase.STOPPING) for r in replicas)
        coming = len(new) > ready_new
        if not gotten and not leaving and not coming and (going := self._who_makes_room(want, old)):
            why = "others carry the load" if ready_new + len(old) > 1 else "it is the only one"
            self._let_go(going, f"no room for one more during the roll to revision {revision}; {why}")

    def _hold_canary(
        self, want: Desired, stable: Model, new: list[Replica], old: list[Replica], replicas: Sequence[Replica]
    ) -> None:
        self._retry_crashed(stable, old)
        for replica in [r for r in old if r.revision != stable.revision]:
            self._let_go(replica, f"neither of revision {stable.revision} nor of {want.model.revision}")
            old.remove(replica)
        for replica in victims(new, len(new) - want.canary):
            self._let_go(replica, f"{want.canary} wanted as canary, {len(new)} there")
        for replica in victims(old, len(old) - want.count):
            self._let_go(replica, f"{want.wanted}, {len(old)} there")
        lacking = want.canary - len(new)
        gotten = self._grow(want, lacking, replicas) if lacking > 0 else 0
        leaving = any(r.phase in (Phase.DRAINING, Phase.STOPPING) for r in replicas)
        going = self._who_makes_room(want, old)
        carried = sum(r.phase is Phase.READY for r in old) > 1
        if lacking > gotten and going is not None and not leaving and carried:
            self._let_go(going, f"no room for a canary of revision {want.model.revision}; others carry the load")
        elif lacking <= gotten and len(old) < want.count:
            self._grow(replace(want, model=stable), want.count - len(old), replicas)

    def _who_makes_room(self, want: Desired, old: Sequence[Replica]) -> Replica | None:
        """Who leaves for the revision that found no place; None where that would not help, or moves make room."""
        moved = moved_away(self._observed.replicas)
        if want.model.name in self._waiting or any(r.name in moved and not r.live for r in self._observed.replicas):
            return None
        if not old or not (refused := self._refusals.get(want.model.name)):
            return None
        fleet, divided = self._ledger.inventory(), want.claim is not None
        return whose_leaving_helps(old, refused[0].request, fleet, divided=divided)

    # --- actions ---

    def _stop(self, replica: Replica, why: str) -> None:
        self._actions.append(Stop(replica.name, replica.model, why))

    def _let_go(self, replica: Replica, why: str) -> None:
        if replica.phase is Phase.READY:
            self._actions.append(Drain(replica.name, replica.model, why))
        else:
            self._stop(replica, why)
