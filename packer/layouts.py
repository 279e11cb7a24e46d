"""One layout of one MIG device: what it is worth, and what each way of changing it would gain or lose.

Devices of one model with the same layout are alike in all of this, so `Slots` keeps one `State` for all of them, which
works each answer out once. Worths and losses are in slots, against the profiles that the expected mix asks (`mig`).
"""

from __future__ import annotations

from packer.inventory import MigInstance
from packer.mig import GEOMETRIES, Layout, choice, openings, worth

Profiles = tuple[tuple[str, float], ...]
"""Expected weights by profile; they sum to 1."""


class State:
    """One layout on one model of device, and what it is worth."""

    __slots__ = ("_choices", "_exits", "_mix", "_trades", "_windows", "instances", "layout", "model", "text", "worth")

    def __init__(self, model: str, layout: Layout, mix: Profiles) -> None:
        self.model = model
        self.layout = layout
        self.instances = tuple(sorted(layout))
        self.text = " ".join(f"{i.start}:{i.profile}" for i in self.instances)
        self.worth = worth(model, layout, mix)
        self._mix = mix
        self._choices: dict[str, tuple[float, int] | None] = {}
        self._trades: dict[str, tuple[tuple[float, MigInstance, int | None], ...]] = {}
        self._windows: dict[str, tuple[tuple[MigInstance, int, tuple[MigInstance, ...]], ...]] = {}
        self._exits: tuple[tuple[MigInstance, float, int | None], ...] | None = None

    def choice(self, profile: str) -> tuple[float, int] | None:
        """(loss, start) of the best start for a profile."""
        if profile not in self._choices:
            self._choices[profile] = choice(self.model, self.layout, profile, self._mix)
        return self._choices[profile]

    def trades(self, profile: str) -> tuple[tuple[float, MigInstance, int | None], ...]:
        """(loss, who makes way for the profile, the start on this device where it goes, None: to another)."""
        if profile not in self._trades:
            found = []
            for instance in self.instances:
                rest = self.layout - {instance}
                asides = [(s, rest | {MigInstance(s, instance.profile)}) for s in self._asides(instance)]
                for aside, after in [(None, rest), *asides]:
                    if (best := choice(self.model, after, profile, self._mix)) is not None:
                        loss = self.worth - worth(self.model, after, self._mix) + best[0]
                        found.append((round(loss, 9), instance, aside))
            self._trades[profile] = tuple(found)
        return self._trades[profile]

    def exits(self) -> tuple[tuple[MigInstance, float, int | None], ...]:
        """(who leaves, worth gained here, the start on this device where it goes, None: to another)."""
        if self._exits is None:
            found: list[tuple[MigInstance, float, int | None]] = []
            for instance in self.instances:
                rest = self.layout - {instance}
                found.append((instance, round(worth(self.model, rest, self._mix) - self.worth, 9), None))
                for start in self._asides(instance):
                    after = rest | {MigInstance(start, instance.profile)}
                    found.append((instance, round(worth(self.model, after, self._mix) - self.worth, 9), start))
            self._exits = tuple(found)
        return self._exits

    def windows(self, profile: str) -> tuple[tuple[MigInstance, int, tuple[MigInstance, ...]], ...]:
        """(slots that the profile could have, how many of those are held, by whom: the largest first)."""
        if profile not in self._windows:
            geometry = GEOMETRIES[self.model]
            wanted = geometry.profile(profile)
            kinds = {i: geometry.profile(i.profile) for i in self.instances}
            found = []
            for start in wanted.starts:
                end = start + wanted.size
                inside = [i for i in self.instances if i.start < end and start < i.start + kinds[i].size]
                slices = wanted.slices + sum(kinds[i].slices for i in self.instances if i not in inside)
                # Moving as large a piece as the newcomer gains nothing, unless it may start where the newcomer may not.
                idle = any(kinds[i].size >= wanted.size and set(kinds[i].starts) <= set(wanted.starts) for i in inside)
                if inside and slices <= geometry.slices and not idle:
                    inside.sort(key=lambda i: (-kinds[i].size, i.start))
                    size = sum(kinds[i].size for i in inside)
                    found.append((MigInstance(start, profile), size, tuple(inside)))
            self._windows[profile] = tuple(found)
        return self._windows[profile]

    def _asides(self, instance: MigInstance) -> tuple[int, ...]:
        return openings(self.model, self.layout, instance.profile)
