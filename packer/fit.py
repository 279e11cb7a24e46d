"""Whether a slice fits a Device, and if not, why: per Device (`obstacles`), in words per class of Devices (`refuse`).

A Device takes a slice when all of this holds: its model and labels (its own or its Node's) are those asked for; it
offers the mechanism; it and its Node could hold the slice when empty; it is healthy and its Node schedulable; no slice
there uses another mechanism (an MPS server, MIG mode and time-slicing exclude each other on one GPU); for MIG, the
profile that the slice needs has a start whose slots are empty; and what is free of memory, compute, clients and the
Node's CPU and memory suffices. The last five are hard sums of integers.

Devices alike in model, memory, reserve, compute, clients and mechanisms form a class. A `NoFit` holds one
`ClassRefusal` a class: its reason is that of the Device which is nearest to taking the slice, its text accounts for
every Device of the class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from packer.inventory import ClassRefusal, Device, MigInstance, NoFit, SliceRequest
from packer.mig import Geometry, Profile, geometry_of, openings
from packer.occupancy import DeviceTally, carries

Reason = Literal[
    "memory",
    "compute",
    "clients",
    "host-cpu",
    "host-memory",
    "slots",
    "occupied",
    "devices",
    "mixed",
    "unhealthy",
    "too-large",
    "too-many",
    "mechanism",
    "label",
    "model",
]
#: From what the next departure may cure to what nothing cures.
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
_RANK: Final[Mapping[str, int]] = {reason: rank for rank, reason in enumerate(REASONS)}
#: What keeps a slice off a device for ever.
_PERMANENT: Final[frozenset[Reason]] = frozenset({"model", "label", "mechanism", "too-large"})
#: Of a Device that is refused for one of these, what is free does not count.
_OUT_OF_REACH: Final[frozenset[Reason]] = frozenset({"model", "label", "mechanism", "unhealthy"})
_NODES_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps a slice off one Device."""

    reason: Reason
    missing: int = 0
    """How much more would do, in the quantity's unit; 0 where it is no quantity."""


def check_request(request: SliceRequest) -> None:
    """ValueError, naming field, value and mend, where a request makes no sense for any fleet."""
    for field, value, ok, mend in (
        ("memory_mib", request.memory_mib, request.memory_mib >= 1, "guarantee at least 1 MiB"),
        ("compute", request.compute, 0 <= request.compute <= 100, "give a percent from 0 to 100"),
        ("devices", request.devices, request.devices >= 1, "ask for at least one device"),
        ("cpu_milli", request.cpu_milli, request.cpu_milli >= 0, "give 0 or more"),
        ("host_memory_mib", request.host_memory_mib, request.host_memory_mib >= 0, "give 0 or more"),
        (
            "memory_limit_mib",
            request.memory_limit_mib,
            request.limit_mib >= request.memory_mib,
            f"give at least the guarantee of {request.memory_mib}",
        ),
        (
            "whole",
            request.whole,
            not request.whole or (request.devices > 1 and request.compute == 100 and request.mechanism != "mig"),
            "ask for several devices and 100 percent of each, not by MIG",
        ),
    ):
        if not ok:
            raise ValueError(f"slice of {request.id!r}: {field}: {value} is out of range; {mend}")


def obstacles(tally: DeviceTally, request: SliceRequest) -> tuple[Obstacle, ...]:
    """All that keeps the slice off this Device now; empty when it fits.

    What can never change hides what can: of a Device with the wrong model it does not matter how full it is.
    """
    device, host = tally.device, tally.host
    if request.device_models and device.model not in request.device_models:
        return (Obstacle("model"),)
    if request.labels and not carries(request.labels, tally):
        return (Obstacle("label"),)
    if request.mechanism not in device.mechanisms or (request.mechanism == "mig" and _geometry(device) is None):
        return (Obstacle("mechanism"),)
    if _too_large(tally, request):
        return (Obstacle("too-large"),)
    if not device.healthy or not host.node.schedulable:
        return (Obstacle("unhealthy"),)
    found: list[Obstacle] = []
    if request.whole and tally.requests:
        found.append(Obstacle("occupied"))
    else:
        if request.memory_mib > tally.free_mib:
            found.append(Obstacle("memory", request.memory_mib - tally.free_mib))
        if request.compute > tally.free_compute:
            found.append(Obstacle("compute", request.compute - tally.free_compute))
    if tally.free_clients < 1:
        found.append(Obstacle("clients", 1 - tally.free_clients))
    if (cpu := host.free_cpu_milli) is not None and request.cpu_milli > cpu:
        found.append(Obstacle("host-cpu", request.cpu_milli - cpu))
    if (memory := host.free_host_memory_mib) is not None and request.host_memory_mib > memory:
        found.append(Obstacle("host-memory", request.host_memory_mib - memory))
    if any(mechanism != request.mechanism for mechanism in tally.mechanisms):
        found.append(Obstacle("mixed"))
    elif request.mechanism == "mig" and not windows(tally, request):
        found.append(Obstacle("slots"))
    return tuple(found)


def windows(tally: DeviceTally, request: SliceRequest) -> tuple[MigInstance, ...]:
    """The GPU instances that could be made for the slice in slots that are empty: one profile, at each start."""
    geometry = _geometry(tally.device)
    profile = _profile(tally.device, request)
    if geometry is None or profile is None:
        return ()
    return tuple(MigInstance(s, profile.name) for s in openings(geometry.model, tally.layout, profile.name))


def _geometry(device: Device) -> Geometry | None:
    return geometry_of(device.model, device.memory_mib)


def refuse(tallies: Iterable[DeviceTally], request: SliceRequest) -> NoFit:
    """Why none of these Devices takes the slice; to be asked only once it is known that none does."""
    classes: dict[tuple[object, ...], list[DeviceTally]] = {}
    for tally in tallies:
        classes.setdefault(_class_of(tally.device), []).append(tally)
    refusals = [_refusal(members, request) for members in classes.values()]
    refusals.sort(key=lambda r: (_RANK[r.reason], r.missing_mib, r.missing_compute, r.text))
    return NoFit(request, tuple(refusals))


def refuse_several(tallies: Iterable[DeviceTally], request: SliceRequest) -> NoFit:
    """Why no Node has as many Devices as the request needs; like `refuse`, to be asked only once that is known."""
    classes: dict[tuple[object, ...], list[tuple[DeviceTally, set[Reason]]]] = {}
    ever: Counter[str] = Counter()
    now: Counter[str] = Counter()
    for tally in tallies:
        reasons = {o.reason for o in obstacles(tally, request)}
        classes.setdefault(_class_of(tally.device), []).append((tally, reasons))
        now[tally.device.node] += not reasons
        ever[tally.device.node] += not reasons & _PERMANENT
    refusals = [_refusal_of_several(members, request, ever, now) for members in classes.values()]
    refusals.sort(key=lambda r: (_RANK[r.reason], r.missing_mib, r.missing_compute, r.text))
    return NoFit(request, tuple(refusals))


def _refusal_of_several(
    found: Sequence[tuple[DeviceTally, set[Reason]]],
    request: SliceRequest,
    ever: Mapping[str, int],
    now: Mapping[str, int],
) -> ClassRefusal:
    """Of a class's devices, each with what is in its way; `ever` and `now` are how many of each node could take one."""
    members = [t for t, _ in found]
    able = [t for t, reasons in found if not reasons]
    fitting = [t for t, reasons in found if not reasons & _PERMANENT]
    most_ever = max((ever[t.device.node] for t in fitting), default=0)
    reason: Reason = "devices"
    if 0 < most_ever < request.devices:
        reason, count = "too-many", f"no such node has more than {most_ever}"
    elif able:
        count = f"at most {max(now[t.device.node] for t in able)} of a node have room"
        if others := [t for t, reasons in found if reasons]:
            count += f" ({_in_groups(others, request)[0]})"
    else:
        return _refusal(members, request)
    first = members[0].device
    return ClassRefusal(
        device_class=first.model,
        devices=len(members),
        reason=reason,
        text=f"{len(members)} x {first.model} of {first.memory_mib:,} MiB ({_where(members)}): the slice needs "
        f"{request.devices} devices of one node, and {count}",
    )


def _class_of(device: Device) -> tuple[object, ...]:
    return (
        device.model,
        device.memory_mib,
        device.reserve_mib,
        device.compute,
        device.max_clients,
        device.mechanisms,
    )


def _too_large(tally: DeviceTally, request: SliceRequest) -> bool:
    device, node = tally.device, tally.host.node
    return (
        request.memory_mib > device.usable_mib
        or request.compute > min(device.compute, 100)
        or device.max_clients < 1
        or (node.cpu_milli is not None and request.cpu_milli > node.cpu_milli)
        or (node.memory_mib is not None and request.host_memory_mib > node.memory_mib)
        or _profileless(device, request)
    )


def _profile(device: Device, request: SliceRequest) -> Profile | None:
    geometry = _geometry(device)
    return None if geometry is None else geometry.profile_for(request.memory_mib, request.compute)


def _profileless(device: Device, request: SliceRequest) -> bool:
    """Whether the slice is for MIG and no profile of the device is as large."""
    return request.mechanism == "mig" and _profile(device, request) is None


def _refusal(members: Sequence[DeviceTally], request: SliceRequest) -> ClassRefusal:
    nearest: tuple[tuple[int, int, int, int], Reason] | None = None
    for tally in members:
        found = obstacles(tally, request)
        first = found[0]
        distance = (max(_RANK[o.reason] for o in found), len(found), _RANK[first.reason], first.missing)
        if nearest is None or distance < nearest[0]:
            nearest = distance, first.reason
    assert nearest is not None
    detail, alike = _in_groups(members, request)
    counted = [t for reasons, ts in alike.items() if not _OUT_OF_REACH & set(reasons) for t in ts]
    first_device = members[0].device
    return ClassRefusal(
        device_class=first_device.model,
        devices=len(members),
        reason=nearest[1],
        missing_mib=min((max(0, request.takes_mib(t.device) - t.free_mib) for t in counted), default=0),
        missing_compute=min((max(0, request.compute - t.free_compute) for t in counted), default=0),
        text=f"{len(members)} x {first_device.model} of {first_device.memory_mib:,} MiB ({_where(members)}): {detail}",
    )


def _in_groups(
    members: Sequence[DeviceTally], request: SliceRequest
) -> tuple[str, Mapping[tuple[Reason, ...], list[DeviceTally]]]:
    """Why each of these Devices does not take the slice: in words, and by what is in its way."""
    alike: dict[tuple[Reason, ...], list[DeviceTally]] = {}
    for tally in members:
        alike.setdefault(tuple(o.reason for o in obstacles(tally, request)), []).append(tally)
    groups = sorted(alike.items(), key=lambda item: (max(_RANK[r] for r in item[0]), len(item[0]), item[0]))
    if len(groups) == 1:
        return _words(*groups[0], request), alike
    texts = (f"{len(tallies)} of them: {_words(reasons, tallies, request)}" for reasons, tallies in groups)
    return "; ".join(texts), alike


def _where(members: Sequence[DeviceTally]) -> str:
    names = sorted({t.device.node for t in members})
    if len(names) > _NODES_NAMED:
        return f"{len(names)} nodes"
    return ("node " if len(names) == 1 else "nodes ") + ", ".join(names)


def _words(reasons: Sequence[Reason], tallies: Sequence[DeviceTally], request: SliceRequest) -> str:
    return " and ".join(_phrase(reason, tallies, request) for reason in reasons)


def _phrase(reason: Reason, tallies: Sequence[DeviceTally], request: SliceRequest) -> str:
    best = "the best of them" if len(tallies) > 1 else "it"
    match reason:
        case "memory":
            return _short(request.memory_mib, max(t.free_mib for t in tallies), " MiB", "memory", best)
        case "compute":
            return _short(request.compute, max(t.free_compute for t in tallies), "%", "compute", best)
        case "clients":
            return f"all {tallies[0].device.max_clients} clients taken"
        case "host-cpu":
            free = max(t.host.free_cpu_milli or 0 for t in tallies)
            return _short(request.cpu_milli, free, "m", "host CPU", "the node" if len(tallies) == 1 else "their nodes")
        case "host-memory":
            free = max(t.host.free_host_memory_mib or 0 for t in tallies)
            where = "the node" if len(tallies) == 1 else "their nodes"
            return _short(request.host_memory_mib, free, " MiB", "host memory", where)
        case "mixed":
            others = sorted({m for t in tallies for m in t.mechanisms if m != request.mechanism})
            return f"in use by {', '.join(others)}, which cannot share a device with {request.mechanism}"
        case "unhealthy":
            return _unhealthy(tallies)
        case "too-large":
            return _larger(tallies, request)
        case "mechanism":
            offered = ", ".join(sorted({m for t in tallies for m in t.device.mechanisms})) or "no mechanism"
            if all(request.mechanism in t.device.mechanisms for t in tallies):
                return f"no MIG geometry is known for {tallies[0].device.model}"
            return f"offers {offered}, and the slice asks for {request.mechanism}"
        case "label":
            wanted = ", ".join(f"{k}={v}" for k, v in sorted(request.labels.items()))
            return f"device and node do not carry all of the labels {wanted}"
        case "model":
            return f"the slice asks for {' or '.join(sorted(request.device_models))}"
        case "slots":
            profiles = sorted({p.name for t in tallies for p in [_profile(t.device, request)] if p is not None})
            return f"no empty slots where {' or '.join(profiles)} may lie"
        case "occupied":
            least = min(len(t.requests) for t in tallies)
            held = f"{least} slice{'s' if least > 1 else ''}"
            return f"{best} holds {held}, and the request takes whole devices"
        case "devices" | "too-many":
            return f"fewer than {request.devices} devices of one node have room"


def _short(wanted: int, free: int, unit: str, what: str, where: str) -> str:
    return f"{wanted - free:,}{unit} more {what} needed than the {max(free, 0):,}{unit} free on {where}" + (
        f" ({-free:,}{unit} over)" if free < 0 else ""
    )


def _unhealthy(tallies: Sequence[DeviceTally]) -> str:
    counts = Counter("unhealthy" if not t.device.healthy else "on a node that takes no new slices" for t in tallies)
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{n} {text}" for text, n in sorted(counts.items(), reverse=True))


def _larger(tallies: Sequence[DeviceTally], request: SliceRequest) -> str:
    return " or ".join(sorted({_excess(t, request) for t in tallies}))


def _excess(tally: DeviceTally, request: SliceRequest) -> str:
    device, node = tally.device, tally.host.node
    if request.memory_mib > device.usable_mib:
        return f"{request.memory_mib:,} MiB of memory is more than the {device.usable_mib:,} MiB of such a device"
    if request.compute > min(device.compute, 100):
        return f"{request.compute}% of compute is more than the {device.compute}% of such a device"
    if _profileless(device, request):
        return f"no MIG profile of such a device has {request.memory_mib:,} MiB and {request.compute}% of compute"
    if node.cpu_milli is not None and request.cpu_milli > node.cpu_milli:
        return f"{request.cpu_milli:,}m of host CPU is more than the {node.cpu_milli:,}m of the node"
    if node.memory_mib is not None and request.host_memory_mib > node.memory_mib:
        return f"{request.host_memory_mib:,} MiB of host memory is more than the {node.memory_mib:,} MiB of the node"
    return "such a device takes no clients"
