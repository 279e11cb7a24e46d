"""The slots of many MIG devices: who lies where, the best place for the next instance, and moves that make room.

`Slots` keeps a layout for each device (`mig`) and who holds each instance. Whoever asks says by an `Ask` which profile
it needs on each model of device and which devices may take it. All losses are in slots: what the expected mix could do
with a device less what it could do with it afterwards, slots that nothing can reach any more counting extra.

Room is made in two ways, the cheaper first:

1. *One move*: somebody steps aside and the newcomer takes (part of) what it leaves. Of all pairs of a mover and its new
   place the one is taken that loses least, the newcomer's place included. This is what keeps single instances out of
   places where they strand a slot, and so what keeps later moves few.
2. *A window*: the slots that the newcomer needs on one device are emptied; each instance in them moves elsewhere on its
   device, else to another device, if need be by moves of others. Windows that hold least are tried first; a window that
   cannot be emptied is rolled back.

Every move is make-before-break: the new instance is created in empty slots while the old one is still there, and only
then is the old one destroyed. `tidy` finds single moves, and pairs of moves, that gain more than they cost.

Ties go to the device that changed least lately: an order of events, not of names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from packer.inventory import MigInstance
from packer.layouts import Profiles, State
from packer.mig import GEOMETRIES, Layout, openings, repackable

_WINDOWS: Final = (4, 10, 48)
"""Windows tried in earnest for one profile, the deepest level of nested moves first."""
_PAIRS: Final = 48
"""Movers tried in earnest for one move."""
_FIRST_OF_TWO: Final = 12
"""First moves after which a second is looked for."""


@dataclass(frozen=True, slots=True)
class Seat:
    """An instance on a device, by number."""

    device: int
    instance: MigInstance


@dataclass(frozen=True, slots=True)
class Shift:
    """One move: `target` is created, whoever holds `source` goes there, `source` is destroyed."""

    key: Hashable
    source: Seat
    target: Seat


def _anywhere(_: int) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody needs."""

    profiles: Mapping[str, str]
    """By model of device: the profile; a model that is missing cannot take it."""
    fits: Callable[[int], tuple[int, ...] | None] = _anywhere
    """None for a device that cannot take it as things are, whatever its slots; else less is better, before losses."""
    could: Callable[[int], tuple[int, ...] | None] = _anywhere
    """The same for a device as if it and its host were empty."""


class Slots:
    """Layouts of many devices, who holds what, and where the next instance goes."""

    def __init__(
        self,
        models: Sequence[str],
        mix: Mapping[str, Mapping[str, float]],
        order: Sequence[int] | None = None,
        follow: Callable[[Shift], None] | None = None,
    ) -> None:
        """Empty devices of these models, and by model the profiles to expect with their weights.

        `order` settles ties between devices at first; `follow` is told of every move as it is carried out (or undone).
        Raises ValueError where a model has no geometry.
        """
        for model in models:
            if model not in GEOMETRIES:
                raise ValueError(f"model {model!r} has no MIG geometry; known are {', '.join(GEOMETRIES)}")
        self._mix: dict[str, Profiles] = {
            m: tuple((p, w / sum(weights.values())) for p, w in sorted(weights.items())) for m, weights in mix.items()
        }
        self._known: dict[tuple[str, Layout], State] = {}
        self._states = [self._state(m, frozenset()) for m in models]
        self._of: dict[State, set[int]] = {}
        for device, state in enumerate(self._states):
            self._of.setdefault(state, set()).add(device)
        self._stamps = list(range(len(models))) if order is None else list(order)
        self._events = len(models)
        self._at: list[dict[MigInstance, Hashable]] = [{} for _ in models]
        self._held: dict[Hashable, tuple[Seat, Ask | None]] = {}
        self._follow = follow

    def _state(self, model: str, layout: Layout) -> State:
        state = self._known.get((model, layout))
        if state is None:
            state = self._known[model, layout] = State(model, layout, self._mix[model])
        return state

    # --- who lies where ---

    def layout(self, device: int) -> Layout:
        """What lies on a device."""
        return self._states[device].layout

    def seat(self, key: Hashable) -> Seat:
        """Where somebody lies."""
        return self._held[key][0]

    def put(self, key: Hashable, seat: Seat, ask: Ask | None) -> None:
        """Count somebody; without an Ask it stays where it is."""
        self._held[key] = seat, ask
        self._at[seat.device][seat.instance] = key
        self._set(seat.device, self.layout(seat.device) | {seat.instance})

    def leave(self, key: Hashable) -> Seat:
        """Somebody has left; its slots may be cut anew."""
        seat, _ = self._held.pop(key)
        del self._at[seat.device][seat.instance]
        self._set(seat.device, self.layout(seat.device) - {seat.instance})
        return seat

    def shift(self, key: Hashable, target: Seat) -> Shift:
        """Make before break."""
        source, ask = self._held[key]
        self._set(target.device, self.layout(target.device) | {target.instance})
        self._at[target.device][target.instance] = key
        del self._at[source.device][source.instance]
        self._set(source.device, self.layout(source.device) - {source.instance})
        self._held[key] = target, ask
        done = Shift(key, source, target)
        if self._follow is not None:
            self._follow(done)
        return done

    def undo(self, shifts: Sequence[Shift]) -> None:
        """Take moves back, the last first."""
        for shift in reversed(shifts):
            self.shift(shift.key, shift.source)

    def _set(self, device: int, layout: Layout) -> None:
        before = self._states[device]
        after = self._states[device] = self._state(before.model, layout)
        self._of[before].discard(device)
        if not self._of[before]:
            del self._of[before]
        self._of.setdefault(after, set()).add(device)
        self._events += 1
        self._stamps[device] = self._events

    # --- placing ---

    def best(self, ask: Ask, shut: Collection[int] = ()) -> tuple[float, Seat] | None:
        """(loss, place) where an instance costs least; None where it fits nowhere. Shut devices take nothing."""
        found: tuple[tuple[object, ...], float, Seat] | None = None
        anywhere = ask.fits is _anywhere
        for state, devices in self._of.items():
            name = ask.profiles.get(state.model)
            option = None if name is None else state.choice(name)
            if name is None or option is None:
                continue
            loss, start = option
            if anywhere and found is not None and found[0] < ((), loss, state.worth, state.text):
                continue
            for device in devices:
                standing = None if device in shut else ask.fits(device)
                if standing is not None:
                    rank = (standing, loss, state.worth, state.text, self._stamps[device])
                    if found is None or rank < found[0]:
                        found = rank, loss, Seat(device, MigInstance(start, name))
        return None if found is None else found[1:]

    # --- making room ---

    def make_room(self, ask: Ask, most: int, shut: Collection[int] = ()) -> tuple[list[Shift], Seat] | None:
        """At most `most` moves, carried out here, and where the instance then fits; None, and nothing changed, else."""
        if most < 1 or self._hopeless(ask):
            return None
        closed = frozenset(shut)
        return self._by_one(ask, closed) or self._by_window(ask, most, closed, len(_WINDOWS) - 1)

    def _hopeless(self, ask: Ask) -> bool:
        """Whether the instances would not fit even if all were laid out anew; told where all devices are alike."""
        models = {s.model for s in self._states}
        if len(models) != 1:
            return not models
        (model,) = models
        if (name := ask.profiles.get(model)) is None:
            return True
        counts = Counter(i.profile for s in self._states for i in s.layout)
        counts[name] += 1
        return not repackable(model, len(self._states), counts)

    def _by_one(self, ask: Ask, shut: frozenset[int]) -> tuple[list[Shift], Seat] | None:
        """The single move after which the instance fits that loses least."""
        hopes: dict[tuple[tuple[str, str], ...], float | None] = {}
        options = []
        for state, devices in self._of.items():
            name = ask.profiles.get(state.model)
            trades = () if name is None else state.trades(name)
            for device in devices if trades else ():
                if device in shut or (standing := ask.could(device)) is None:
                    continue
                for loss, instance, aside in trades:
                    key = self._at[device][instance]
                    mover = self._held[key][1]
                    if (
                        mover is not None
                        and (there := 0.0 if aside is not None else self._hope(mover, hopes)) is not None
                    ):
                        rank = (standing, loss + there, state.text, instance.start, -1 if aside is None else aside)
                        options.append((rank, self._stamps[device], device, key, mover, aside))
        options.sort(key=lambda o: o[:2])
        for _, _, device, key, mover, aside in options[:_PAIRS]:
            target = self._elsewhere(key, mover, aside, shut | {device})
            if target is None:
                continue
            done = self.shift(key, target)
            if (seat := self._seat_on(ask, device)) is not None:
                return [done], seat
            self.undo([done])
        return None

    def _hope(self, mover: Ask, hopes: dict[tuple[tuple[str, str], ...], float | None]) -> float | None:
        """What a mover's best place loses if every device would have it; None where there is none."""
        kind = tuple(mover.profiles.items())
        if kind not in hopes:
            found = self.best(Ask(mover.profiles))
            hopes[kind] = None if found is None else found[0]
        return hopes[kind]

    def _elsewhere(self, key: Hashable, mover: Ask, aside: int | None, shut: Collection[int]) -> Seat | None:
        source = self.seat(key)
        if aside is None:
            found = self.best(mover, shut)
            return None if found is None else found[1]
        return (
            None
            if mover.fits(source.device) is None
            else Seat(source.device, MigInstance(aside, source.instance.profile))
        )

    def _seat_on(self, ask: Ask, device: int) -> Seat | None:
        """The best place on one device, if it takes the instance as things are."""
        name = ask.profiles[self._states[device].model]
        option = self._states[device].choice(name)
        return None if option is None or ask.fits(device) is None else Seat(device, MigInstance(option[1], name))

    def _by_window(self, ask: Ask, most: int, shut: frozenset[int], depth: int) -> tuple[list[Shift], Seat] | None:
        options = sorted(self._windows(ask, most, shut), key=lambda o: o[0])
        for _, device, window, inside in options[: _WINDOWS[depth]]:
            shifts: list[Shift] = []
            for key in inside:
                moved = self._step_aside(key, window) if most > len(shifts) else None
                if moved is None:
                    moved = self._relocate(key, most - len(shifts), shut | {device}, depth)
                if moved is None:
                    break
                shifts += moved
            else:
                free = window.start in openings(self._states[device].model, self.layout(device), window.profile)
                if free and ask.fits(device) is not None:
                    return shifts, self._seat_on(ask, device) or Seat(device, window)
            self.undo(shifts)
        return None

    def _windows(
        self, ask: Ask, most: int, shut: frozenset[int]
    ) -> Iterator[tuple[tuple[object, ...], int, MigInstance, list[Hashable]]]:
        """(rank, device, slots to empty, who lies there, the largest first)."""
        for state, devices in self._of.items():
            name = ask.profiles.get(state.model)
            windows = () if name is None else [w for w in state.windows(name) if len(w[2]) <= most]
            alike: set[object] = set()
            for device in sorted(devices, key=self._stamps.__getitem__) if windows else ():
                if device in shut or (standing := ask.could(device)) is None:
                    continue
                for window, size, inside in windows:
                    keys = [self._at[device][i] for i in inside]
                    movers = [self._held[k][1] for k in keys]
                    # Of devices that differ in nothing one is enough.
                    free = all(m is not None and m.fits is _anywhere for m in movers)
                    if (free and (standing, window.start) in alike) or any(m is None for m in movers):
                        continue
                    if free:
                        alike.add((standing, window.start))
                    rank = (standing, size, len(inside), window.start, state.text, self._stamps[device])
                    yield rank, device, window, keys

    def _step_aside(self, key: Hashable, window: MigInstance) -> list[Shift] | None:
        """Move somebody to free slots of its own device outside a window."""
        seat, mover = self._held[key]
        device, instance = seat.device, seat.instance
        state = self._states[device]
        geometry = GEOMETRIES[state.model]
        size, wide = geometry.profile(instance.profile).size, geometry.profile(window.profile).size
        starts = [
            s
            for s in openings(state.model, state.layout, instance.profile)
            if s >= window.start + wide or window.start >= s + size
        ]
        if not starts or mover is None or mover.fits(device) is None:
            return None
        rest = state.layout - {instance}
        best = max(starts, key=lambda s: (self._state(state.model, rest | {MigInstance(s, instance.profile)}).worth, s))
        return [self.shift(key, Seat(device, MigInstance(best, instance.profile)))]

    def _relocate(self, key: Hashable, most: int, shut: frozenset[int], depth: int) -> list[Shift] | None:
        """Move somebody to another device, if need be by moves of others."""
        mover = self._held[key][1]
        if most < 1 or mover is None:
            return None
        found = self.best(mover, shut)
        if found is not None:
            return [self.shift(key, found[1])]
        if depth == 0 or most < 2:
            return None
        nested = self._by_window(mover, most - 1, shut, depth - 1)
        if nested is None:
            return None
        before, seat = nested
        return [*before, self.shift(key, seat)]

    # --- defragmentation ---

    def tidy(self, least: float, pairs: bool = True) -> list[Shift]:
        """The move that gains most, else the pair of moves that does, carried out here.

        Empty where no move gains more than `least` slots, and no pair more than twice that.
        """
        if options := self._gains(least):
            return [self.shift(options[0][1], options[0][2])]
        if not pairs:
            return []
        best: tuple[float, Shift, tuple[Hashable, Seat]] | None = None
        for gain, key, target in self._gains(-inf):
            done = self.shift(key, target)
            for further, second, place in self._gains(2 * least - gain)[:1]:
                if best is None or gain + further > best[0]:
                    best = gain + further, done, (second, place)
            self.undo([done])
        if best is None:
            return []
        _, first, (second, place) = best
        return [self.shift(first.key, first.target), self.shift(second, place)]

    def _gains(self, above: float) -> list[tuple[float, Hashable, Seat]]:
        """(slots gained, who moves, where to) of some movers that gain more than that, the most first."""
        hopes: dict[tuple[tuple[str, str], ...], float | None] = {}
        options = []
        for state, devices in self._of.items():
            for instance, gain, aside in state.exits():
                for device in devices if gain > above else ():
                    key = self._at[device][instance]
                    mover = self._held[key][1]
                    loss = None if mover is None else 0.0 if aside is not None else self._hope(mover, hopes)
                    if mover is not None and loss is not None and gain - loss > above:
                        rank = (loss - gain, state.text, instance.start, -1 if aside is None else aside)
                        options.append((rank, self._stamps[device], device, key, mover, gain, aside))
        options.sort(key=lambda o: o[:2])
        exact: list[tuple[float, Hashable, Seat]] = []
        for _, _, device, key, mover, gain, aside in options[:_FIRST_OF_TWO]:
            place: tuple[float, Seat] | None
            if aside is None:
                place = self.best(mover, {device})
            else:
                beside = self._elsewhere(key, mover, aside, ())
                place = None if beside is None else (0.0, beside)
            if place is not None and gain - place[0] > above:
                exact.append((round(gain - place[0], 9), key, place[1]))
        exact.sort(key=lambda o: -o[0])
        return exact
