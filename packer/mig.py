"""MIG: which instance profiles may lie where on a device, and where the next one should go.

A device has memory slots; a profile takes `size` of them from one of few allowed starts, and a number of compute
slices, of which the device has a bounded sum. Starts and sizes are the driver's (`nvidia-smi mig -lgipp` on A100-40GB,
A100-80GB and H100-NVL; NVIDIA MIG user guide for the names and greatest counts of H200, B200 and A30): mind that 3g
takes four slots, not three, and 7g all eight.

A `Layout` is the set of instances on one device. Repartitioning is nothing but creating and destroying instances, and
an instance is destroyed only when its tenant has left, so that slots in use are never touched: every layout that can
be reached is legal by construction, and `verify_layout` re-checks one from the table alone.

There are few layouts (336 of the five distinct sizes on an eight-slot part), so that the worth of each is tabulated:
the mean over the expected mix of how many more of each profile it could take, weighed by the profile's size, less a
penalty for slots that nothing can reach any more. A profile goes where worth loses least; `slots` does that for many
devices at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from packer.inventory import MigInstance as Instance


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of GPU instance."""

    name: str
    memory_mib: int
    slices: int
    """Compute slices."""
    size: int
    """Memory slots."""
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What one model of device allows."""

    model: str
    slots: int
    slices: int
    profiles: tuple[Profile, ...]

    def profile(self, name: str) -> Profile:
        """By name; ValueError names what there is."""
        for profile in self.profiles:
            if profile.name == name:
                return profile
        raise ValueError(
            f"MIG profile {name!r} is not one of {self.model}; it has {', '.join(p.name for p in self.profiles)}"
        )

    def profile_for(self, memory_mib: int, compute: int) -> Profile | None:
        """The smallest profile with this much memory and percent of the device's compute; None where none has.

        One slice is 1/slices of the compute. Compute chooses first: of profiles with enough of both the one of fewest
        slices, then of least memory.
        """
        able = [p for p in self.profiles if p.memory_mib >= memory_mib and 100 * p.slices >= compute * self.slices]
        return min(able, key=lambda p: (p.slices, p.size), default=None)


def _eight(model: str, gib: Sequence[int], names: Sequence[int] | None = None) -> Geometry:
    """An eight-slot part from the memory of its 1g, 1g double, 2g, 3g, 4g and 7g profiles in GB."""
    kinds = (
        ("1g", 1, 1, (0, 1, 2, 3, 4, 5, 6)),
        ("1g", 1, 2, (0, 2, 4, 6)),
        ("2g", 2, 2, (0, 2, 4)),
        ("3g", 3, 4, (0, 4)),
        ("4g", 4, 4, (0,)),
        ("7g", 7, 8, (0,)),
    )
    return Geometry(
        model,
        8,
        7,
        tuple(
            Profile(f"{kind}.{gb}gb", gb * 1024, slices, size, starts)
            for gb, (kind, slices, size, starts) in zip(gib, kinds, strict=True)
        ),
    )


GEOMETRIES: Final[Mapping[str, Geometry]] = {
    g.model: g
    for g in (
        _eight("A100-40", (5, 10, 10, 20, 20, 40)),
        _eight("A100-80", (10, 20, 20, 40, 40, 80)),
        _eight("H100-80", (10, 20, 20, 40, 40, 80)),
        _eight("H200-141", (18, 35, 35, 71, 71, 141)),
        _eight("B200", (23, 45, 45, 90, 90, 180)),
        Geometry(
            "A30-24",
            4,
            4,
            (
                Profile("1g.6gb", 6 * 1024, 1, 1, (0, 1, 2, 3)),
                Profile("2g.12gb", 12 * 1024, 2, 2, (0, 2)),
                Profile("4g.24gb", 24 * 1024, 4, 4, (0,)),
            ),
        ),
    )
}


@lru_cache(maxsize=1_024)
def geometry_of(model: str, memory_mib: int) -> Geometry | None:
    """The geometry of a device by its model's name, as the driver or the table spells it, and its memory in MiB.

    "A100-40" and "NVIDIA A100-SXM4-40GB" are one: the family must be a word of the name, and the memory within a
    tenth of what the profile of the whole device has. None where the table has no such device.
    """
    words = model.upper().replace("-", " ").split()
    for geometry in GEOMETRIES.values():
        family = geometry.model.partition("-")[0]
        whole = geometry.profiles[-1].memory_mib
        if family in words and 0.9 * whole <= memory_mib <= 1.1 * whole:
            return geometry
    return None


#: What lies on one device.
Layout = frozenset[Instance]
_STRANDED: Final = 10.0
"""Worth lost with each slot that is stranded; a slot in use is worth about one."""


def verify_layout(model: str, layout: Iterable[Instance]) -> list[str]:
    """All that is wrong with the instances on one device; empty when the driver would allow them."""
    geometry = GEOMETRIES.get(model)
    if geometry is None:
        return [f"model {model} has no MIG geometry"]
    taken: dict[int, Instance] = {}
    slices = 0
    problems = []
    for instance in sorted(layout):
        profile = next((p for p in geometry.profiles if p.name == instance.profile), None)
        if profile is None:
            problems.append(f"{instance.profile} is no profile of {model}")
            continue
        if instance.start not in profile.starts:
            problems.append(f"{instance.profile} may not start at slot {instance.start}")
        slices += profile.slices
        for slot in range(instance.start, instance.start + profile.size):
            if slot >= geometry.slots:
                problems.append(f"{instance.profile} at {instance.start} reaches past slot {geometry.slots - 1}")
                break
            if slot in taken:
                problems.append(f"slot {slot} is both {taken[slot].profile}'s and {instance.profile}'s")
            taken[slot] = instance
    if slices > geometry.slices:
        problems.append(f"{slices} compute slices of {geometry.slices}")
    return problems


def openings(model: str, layout: Layout, profile: str) -> tuple[int, ...]:
    """Starts at which the profile fits beside what is there."""
    return _openings(model, layout, profile)


@lru_cache(maxsize=65_536)
def _openings(model: str, layout: Layout, name: str) -> tuple[int, ...]:
    geometry = GEOMETRIES[model]
    profile = geometry.profile(name)
    used, slices = 0, 0
    for instance in layout:
        there = geometry.profile(instance.profile)
        used |= ((1 << there.size) - 1) << instance.start
        slices += there.slices
    if slices + profile.slices > geometry.slices:
        return ()
    return tuple(s for s in profile.starts if not used & (((1 << profile.size) - 1) << s))


@lru_cache(maxsize=65_536)
def capacity(model: str, layout: Layout, profile: str) -> int:
    """How many more instances of the profile fit."""
    count = 0
    while starts := _openings(model, layout, profile):
        # From the top, where the fewest others may start: exact, since alike sizes do not overlap partly.
        layout = layout | {Instance(starts[-1], profile)}
        count += 1
    return count


def repackable(model: str, devices: int, counts: Mapping[str, int]) -> bool:
    """Whether a multiset of profiles fits so many devices when everything may be laid out anew; exact.

    7g takes a device; 4g at most one a device, in its lower half; 3g either half. What remains are pairs of slots: two
    in a lower half and one in an upper half that take a 2g, a double or two singles, and the upper half's tail (slots 6
    and 7) that takes a double or one single, since no 2g may start at 6 and no single at 7.
    """
    names = [p.name for p in GEOMETRIES[model].profiles]
    if len(names) == 3:
        one, two, four = (counts.get(n, 0) for n in names)
        return 4 * four + 2 * two + one <= 4 * devices
    one, double, two, three, four, seven = (counts.get(n, 0) for n in names)
    devices -= seven
    if devices < 0 or four > devices:
        return False
    # Lower halves: 4g first, then 3g; 3g goes to upper halves first, since those are worth less to small ones.
    upper = devices - min(devices, three)
    lower = devices - four - max(0, three - devices)
    if lower < 0:
        return False
    # Compute slices: seven a device; with 4g and 3g beside each other all are used, as is never exceeded by size.
    # A lower half has two even pairs; an upper half one pair that takes anything (4-5), and one (6-7) for a double or
    # a single.
    free_pairs = 2 * lower + upper
    tails = upper
    free_pairs -= two
    if free_pairs < 0:
        return False
    doubles_in_tail = 0
    # A tail holds one double or one single; a free pair one double or two singles: doubles go to tails first.
    doubles_in_tail = min(double, tails)
    free_pairs -= double - doubles_in_tail
    return free_pairs >= 0 and one <= 2 * free_pairs + tails - doubles_in_tail


def stranded(model: str, layout: Layout) -> int:
    """Free slots that no profile can reach any more, such as slot 7 beside a single at 6."""
    geometry = GEOMETRIES[model]
    used = sum(geometry.profile(i.profile).size for i in layout)
    reached = {
        slot
        for p in geometry.profiles
        for start in _openings(model, layout, p.name)
        for slot in range(start, start + p.size)
    }
    return geometry.slots - used - len(reached)


@lru_cache(maxsize=65_536)
def worth(model: str, layout: Layout, mix: tuple[tuple[str, float], ...]) -> float:
    """Expected use of what is left, in slots; mix holds profiles and their weights, which sum to 1."""
    geometry = GEOMETRIES[model]
    useful = sum(w * geometry.profile(p).size * capacity(model, layout, p) for p, w in mix)
    return useful - _STRANDED * stranded(model, layout)


@lru_cache(maxsize=65_536)
def choice(model: str, layout: Layout, profile: str, mix: tuple[tuple[str, float], ...]) -> tuple[float, int] | None:
    """(loss of worth, start) of the best start on such a device; None where there is none."""
    found = min(
        (
            (round(worth(model, layout, mix) - worth(model, layout | {Instance(s, profile)}, mix), 9), -s)
            for s in openings(model, layout, profile)
        ),
        default=None,
    )
    return None if found is None else (found[0], -found[1])
