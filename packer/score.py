"""How good a Device is for a slice that fits it. Higher is better; scores compare within one placement.

In this order of weight:

1. Devices that the request avoids come last.
2. Fewer replicas of the same group on the Device: a fault of a shared GPU takes every client on it down.
3. Fewer replicas of the same group on the Node.
4. Best fit: the less is left over, the better. Left-over compute, as a fraction of a whole device, weighs twice as much
   as left-over memory, as a fraction of the fleet's largest device, since compute is the scarcer of the two to give
   away: it cannot be lent, and it picks the profile of a MIG device.

Equal scores are settled by signature: all that makes a Device and its Node what they are, names left out. Devices
with the same signature are mirror images of each other (one renaming of the fleet turns one into the other), so
whichever is taken, the outcome is the same but for names; among those the first in the inventory's order is taken.
What remains name-dependent is what carries names itself: labels that repeat a Node's name, and `avoid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from packer.inventory import SliceRequest
from packer.occupancy import DeviceTally, NodeTally
from packer.words import replicas

_AVOIDED: Final = 1_000_000.0
_SAME_DEVICE: Final = 1_000.0
_SAME_NODE: Final = 1.0
_COMPUTE_SHARE: Final = 2 / 3

#: Ordered, comparable, free of node and device names.
Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """One Device weighed for one request."""

    value: float
    same_on_device: int
    """Replicas of the group that lie there already."""
    same_on_node: int
    memory_left: int
    """MiB free once the slice is there."""
    compute_left: int
    """Percent free once the slice is there."""
    avoided: bool

    def why(self, group: str) -> str:
        """The reasons in words, weightiest first."""
        parts = []
        if self.avoided:
            parts.append("a start there failed lately")
        if self.same_on_device:
            parts.append(f"holds {replicas(self.same_on_device, group)} already")
        elif self.same_on_node:
            parts.append(f"no replica of {group} on the device, {self.same_on_node} on the node")
        else:
            parts.append(f"no replica of {group} on the node")
        parts.append(f"leaves {self.memory_left:,} MiB and {self.compute_left}% compute free")
        return "; ".join(parts)

    def why_not(self, best: Score, group: str) -> str:
        """Why the best was taken and not this one: the weightiest thing in which they differ."""
        free = f"{self.memory_left:,} MiB and {self.compute_left}% compute"
        if self.avoided and not best.avoided:
            return "a start there failed lately"
        if self.same_on_device > best.same_on_device:
            return f"holds {replicas(self.same_on_device, group)} already"
        if self.same_on_node > best.same_on_node:
            return f"its node holds {replicas(self.same_on_node, group)} already"
        if self.value == best.value:
            return f"as good: would leave {free} free"
        return f"a looser fit: would leave {free} free, not {best.memory_left:,} MiB and {best.compute_left}%"


def score(tally: DeviceTally, request: SliceRequest, largest_mib: int) -> Score:
    """Weigh a Device that the slice fits; largest_mib is the usable memory of the fleet's largest device."""
    memory_left = tally.free_mib - request.memory_mib
    compute_left = tally.free_compute - request.compute
    same_device, same_node = tally.groups[request.group], tally.host.groups[request.group]
    avoided = tally.device.id in request.avoid
    left = _COMPUTE_SHARE * compute_left / 100 + (1 - _COMPUTE_SHARE) * memory_left / largest_mib
    value = 1 - left - _SAME_NODE * same_node - _SAME_DEVICE * same_device - _AVOIDED * avoided
    return Score(round(value, 6), same_device, same_node, memory_left, compute_left, avoided)


def settle(tied: Sequence[DeviceTally]) -> DeviceTally:
    """The one to take of Devices with equal scores: that which others need least for their links, then the least
    signature, of mirror images the first."""
    own = {id(tally): (_needed(tally), _device_signature(tally)) for tally in tied}
    least = min(own.values())
    alike = [tally for tally in tied if own[id(tally)] == least]
    hosts = {id(tally.host): tally.host for tally in alike}
    nodes = {key: _node_signature(host) for key, host in hosts.items()} if len(hosts) > 1 else {}
    return min(alike, key=lambda tally: nodes.get(id(tally.host), ()))


def _needed(tally: DeviceTally) -> int:
    """How well the Device is linked to others of its Node, if all are empty; 0 once it is in use."""
    host = tally.host
    if tally.requests or not host.links.any:
        return 0
    free = [n for n, t in enumerate(host.devices) if not t.requests]
    return host.links.cut((host.devices.index(tally),), free)


def signature(tally: DeviceTally) -> Signature:
    """All that makes a Device and its Node what they are, and hold, names left out."""
    return _device_signature(tally), _node_signature(tally.host)


def _node_signature(host: NodeTally) -> Signature:
    node = host.node
    return (
        sorted(_device_signature(t) for t in host.devices),
        _bound(node.cpu_milli),
        _bound(node.memory_mib),
        host.cpu_milli,
        host.host_memory_mib,
        sorted(host.groups.items()),
        sorted(node.labels.items()),
        node.schedulable,
    )


def _device_signature(tally: DeviceTally) -> Signature:
    device = tally.device
    return (
        tally.free_clients,
        tally.free_mib,
        tally.free_compute,
        device.model,
        device.memory_mib,
        device.reserve_mib,
        device.compute,
        sorted(device.mechanisms),
        sorted(device.labels.items()),
        device.healthy,
        sorted(
            (r.group, r.memory_mib, r.compute, r.cpu_milli, r.host_memory_mib, r.mechanism)
            for r in tally.requests.values()
        ),
    )


def _bound(limit: int | None) -> int:
    return -1 if limit is None else limit
