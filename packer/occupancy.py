"""What is taken of each Device and Node: one tally that fit, score, place and the ledger read and update.

An `Inventory` is immutable and says who lies where; an `Occupancy` is the working copy of one computation, built from
it in one pass and then kept up to date as slices come and go, so that a batch is placed against one evolving picture.
Slices on a Device that is gone still count against their Node's host CPU and memory; slices on a Node that is gone
count nowhere. A tally may be over its capacity (a Device was declared smaller while in use): its free amounts are then
negative, and nothing more fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from packer.inventory import Device, Inventory, MigInstance, Node, Placement, SliceRequest
from packer.topology import Links, links_of


class NodeTally:
    """What is taken of one Node's host, and the tallies of its Devices."""

    __slots__ = ("_links", "cpu_milli", "devices", "groups", "host_memory_mib", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cpu_milli = 0
        self.host_memory_mib = 0
        self.groups: Counter[str] = Counter()
        self.devices: list[DeviceTally] = []
        self._links: Links | None = None

    @property
    def links(self) -> Links:
        """How its Devices are linked, numbered as in `devices`."""
        if self._links is None:
            self._links = links_of([t.device for t in self.devices])
        return self._links

    @property
    def free_cpu_milli(self) -> int | None:
        """Thousandths of a core left; None is unbounded."""
        return None if self.node.cpu_milli is None else self.node.cpu_milli - self.cpu_milli

    @property
    def free_host_memory_mib(self) -> int | None:
        """MiB of host memory left; None is unbounded."""
        return None if self.node.memory_mib is None else self.node.memory_mib - self.host_memory_mib


class DeviceTally:
    """What is taken of one Device, and by whom."""

    __slots__ = ("compute", "device", "groups", "host", "layout", "mechanisms", "memory_mib", "requests")

    def __init__(self, device: Device, host: NodeTally) -> None:
        self.device = device
        self.host = host
        self.memory_mib = 0
        self.compute = 0
        self.groups: Counter[str] = Counter()
        self.mechanisms: Counter[str] = Counter()
        self.requests: dict[str, SliceRequest] = {}
        self.layout: frozenset[MigInstance] = frozenset()

    @property
    def free_mib(self) -> int:
        """Usable memory that is not guaranteed to anyone."""
        return self.device.usable_mib - self.memory_mib

    @property
    def free_compute(self) -> int:
        """Percent of the device's compute that nobody holds; at most 100 in sum."""
        return min(self.device.compute, 100) - self.compute

    @property
    def free_clients(self) -> int:
        """Further Instances the device can serve."""
        return self.device.max_clients - len(self.requests)


class Occupancy:
    """The tallies of a whole inventory.

    Raises ValueError when the inventory names a node or device twice, or puts a device on a node that it does not list.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.nodes: dict[str, NodeTally] = {}
        self.devices: dict[str, DeviceTally] = {}
        self.holders: dict[str, Placement] = {}
        #: Usable MiB of the largest Device.
        self.largest_mib = max((d.usable_mib for d in inventory.devices), default=1)
        for node in inventory.nodes:
            if node.name in self.nodes:
                raise ValueError(f"node {node.name!r} is in the inventory twice; names are unique")
            self.nodes[node.name] = NodeTally(node)
        for device in inventory.devices:
            if device.id in self.devices:
                raise ValueError(f"device {device.id!r} is in the inventory twice; ids are unique")
            host = self.nodes.get(device.node)
            if host is None:
                raise ValueError(
                    f"device {device.id!r}: node: {device.node!r} is not in the inventory; list it in nodes"
                )
            tally = DeviceTally(device, host)
            self.devices[device.id] = tally
            host.devices.append(tally)
        for placement in inventory.placements:
            self.add(placement)

    def add(self, placement: Placement) -> None:
        """Count a Placement; ValueError when its Instance has one already."""
        request = placement.request
        if (held := self.holders.get(request.id)) is not None:
            raise ValueError(f"instance {request.id!r} is placed already, on {held.device}; release it first")
        self.holders[request.id] = placement
        if (host := self.nodes.get(placement.node)) is not None:
            host.cpu_milli += request.cpu_milli
            host.host_memory_mib += request.host_memory_mib
            host.groups[request.group] += 1
        for number, device in enumerate(placement.all_devices):
            if (tally := self.devices.get(device)) is None:
                continue
            tally.memory_mib += request.takes_mib(tally.device)
            tally.compute += request.compute
            tally.groups[request.group] += 1
            tally.mechanisms[request.mechanism] += 1
            tally.requests[request.id] = request
            if number < len(placement.mig):
                tally.layout |= {placement.mig[number]}

    def remove(self, instance: str) -> Placement:
        """Count an Instance no more."""
        placement = self.holders.pop(instance)
        request = placement.request
        if (host := self.nodes.get(placement.node)) is not None:
            host.cpu_milli -= request.cpu_milli
            host.host_memory_mib -= request.host_memory_mib
            host.groups[request.group] -= 1
        for number, device in enumerate(placement.all_devices):
            if (tally := self.devices.get(device)) is None:
                continue
            tally.memory_mib -= request.takes_mib(tally.device)
            tally.compute -= request.compute
            tally.groups[request.group] -= 1
            tally.mechanisms -= Counter({request.mechanism: 1})
            del tally.requests[request.id]
            if number < len(placement.mig):
                tally.layout -= {placement.mig[number]}
        return placement


def carries(labels: Mapping[str, str], tally: DeviceTally) -> bool:
    """Whether the Device or its Node has every label given."""
    own, host = tally.device.labels, tally.host.node.labels
    return all(own.get(key) == value or host.get(key) == value for key, value in labels.items())
