"""Who has been promised what: two books a Device, kept before anything is started.

- *Guaranteed*: the sum of memory requests (and of compute, clients and the Node's host quantities). Never oversold.
- *Loaned*: memory and compute above their guarantee that Instances use, up to their limit, of what nobody is
  guaranteed. Revocable: a new guarantee may take what is out on loan, and `overdrawn` then says how much has to be
  called in.

An Instance is first *reserved* (counted, nothing started), then *committed* (it was started), then *released*. A
`Ledger` is immutable: every change gives a new one or raises and changes nothing, so that a planner keeps the old one
as its snapshot, tries, and simply drops what it does not want. `inventory()` is what `place` should see: reserved and
committed slices alike.

`rebuild` takes what was observed to run as it is, oversold or not, since refusing facts helps no one; `oversold` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from packer.fit import check_request, obstacles, refuse, windows
from packer.inventory import Device, Inventory, Node, Placement
from packer.occupancy import Occupancy


class LedgerError(Exception):
    """The ledger cannot be changed in this way; it was left as it was."""


class UnknownDevice(LedgerError):
    """The Placement names a Device that the fleet does not have, or has on another Node."""


class AlreadyReserved(LedgerError):
    """The Instance holds a slice already."""


class NotReserved(LedgerError):
    """The Instance holds no slice."""


class Oversold(LedgerError):
    """The Device or its Node cannot guarantee the slice on top of what it has guaranteed."""


class LoanRefused(LedgerError):
    """More was asked for on loan than the Instance's limit or the Device's free memory allows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One Instance's slice in the books."""

    placement: Placement
    committed: bool = False
    loaned_mib: int = 0
    """Above the guarantee."""
    loaned_compute: int = 0
    """Percent, likewise."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Both books of one Device, in MiB and percent."""

    usable_mib: int
    guaranteed_mib: int
    loaned_mib: int
    compute: int
    clients: int
    loaned_compute: int = 0

    @property
    def loanable_compute(self) -> int:
        """Percent neither guaranteed nor out on loan."""
        return max(0, 100 - self.compute - self.loaned_compute)

    @property
    def loanable_mib(self) -> int:
        """Neither guaranteed nor out on loan."""
        return max(0, self.usable_mib - self.guaranteed_mib - self.loaned_mib)

    @property
    def overdrawn_mib(self) -> int:
        """Loans to call in, so that every guarantee can be honoured."""
        return min(self.loaned_mib, max(0, self.guaranteed_mib + self.loaned_mib - self.usable_mib))


@dataclass(frozen=True, slots=True)
class Ledger:
    nodes: tuple[Node, ...] = ()
    devices: tuple[Device, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    """By Instance."""
    _tallies: list[Occupancy] = field(default_factory=list, init=False, repr=False, compare=False)
    """At most one, of these entries: `reserve` hands it on to the ledger that it returns, so that a plan of many steps
    does not count the fleet anew at each."""

    @classmethod
    def rebuild(cls, inventory: Inventory) -> Self:
        """The ledger of what was observed: every Placement committed, no loans. ValueError on an Instance twice."""
        tallies = Occupancy(inventory)
        entries = {p.request.id: Entry(p, committed=True) for p in inventory.placements}
        ledger = cls(inventory.nodes, inventory.devices, MappingProxyType(entries))
        ledger._tallies.append(tallies)
        return ledger

    def with_fleet(self, nodes: Iterable[Node], devices: Iterable[Device]) -> Self:
        """The same promises on a fleet that has changed (health, sizes, what there is)."""
        return replace(self, nodes=tuple(nodes), devices=tuple(devices))

    def inventory(self) -> Inventory:
        """What there is and what is taken, by reserved and committed Instances alike."""
        return Inventory(self.nodes, self.devices, tuple(e.placement for e in self.entries.values()))

    def reserve(self, *placements: Placement) -> Self:
        """Count slices before anything is started for them; all of them or none.

        Raises UnknownDevice, AlreadyReserved, or Oversold (also where the Device may not be used at all).
        """
        occupancy = self._tallies.pop() if self._tallies else Occupancy(self.inventory())
        entries = dict(self.entries)
        counted: list[str] = []
        try:
            for placement in placements:
                self._check(occupancy, placement)
                occupancy.add(placement)
                counted.append(placement.request.id)
                entries[placement.request.id] = Entry(placement)
        except (LedgerError, ValueError):
            for instance in counted:
                occupancy.remove(instance)
            self._tallies.append(occupancy)
            raise
        after = self._with(entries)
        after._tallies.append(occupancy)
        return after

    def commit(self, instance: str) -> Self:
        """The Instance was started. Raises NotReserved; committing twice changes nothing."""
        return self._with({**self.entries, instance: replace(self.entry(instance), committed=True)})

    def release(self, instance: str) -> Self:
        """The Instance is gone, or will not be started: its slice and its loan are free. Raises NotReserved."""
        self.entry(instance)
        return self._with({i: e for i, e in self.entries.items() if i != instance})

    def lend(self, instance: str, loaned_mib: int) -> Self:
        """Set what the Instance has on loan, MiB above its guarantee; 0 gives it back.

        Raises NotReserved, or LoanRefused beyond the Instance's limit or what its Device has neither guaranteed nor
        lent. A smaller loan than before is never refused.
        """
        entry = self.entry(instance)
        request = entry.placement.request
        most = request.limit_mib - request.memory_mib
        if not 0 <= loaned_mib <= most:
            raise LoanRefused(f"instance {instance!r}: {loaned_mib} MiB on loan; its limit allows 0 to {most} MiB")
        more = loaned_mib - entry.loaned_mib
        if more > 0 and more > (free := self.balance(entry.placement.device).loanable_mib):
            raise LoanRefused(
                f"instance {instance!r}: {more} MiB more on loan; {entry.placement.device} has {free} MiB to lend"
            )
        return self._with({**self.entries, instance: replace(entry, loaned_mib=loaned_mib)})

    def lend_compute(self, instance: str, percent: int) -> Self:
        """Set what the Instance has on loan, percent of its Device above its guarantee; 0 gives it back.

        Raises NotReserved, or LoanRefused beyond what its Device has neither guaranteed nor lent. A smaller loan than
        before is never refused. How far an Instance may grow is its owner's to say.
        """
        entry = self.entry(instance)
        more = percent - entry.loaned_compute
        if percent < 0 or (more > 0 and more > (free := self.balance(entry.placement.device).loanable_compute)):
            has = f"{entry.placement.device} has {free} percent to lend" if percent > 0 else "give 0 or more"
            raise LoanRefused(f"instance {instance!r}: {percent} percent of compute on loan; {has}")
        return self._with({**self.entries, instance: replace(entry, loaned_compute=percent)})

    def entry(self, instance: str) -> Entry:
        """The Instance's slice; NotReserved where it has none."""
        try:
            return self.entries[instance]
        except KeyError:
            raise NotReserved(f"instance {instance!r} holds no slice; reserve one first") from None

    def balance(self, device: str) -> Balance:
        """Both books of one Device; UnknownDevice where the fleet does not have it."""
        found = next((d for d in self.devices if d.id == device), None)
        if found is None:
            raise UnknownDevice(f"device {device!r} is not in the fleet")
        held = [e for e in self.entries.values() if device in e.placement.all_devices]
        return Balance(
            usable_mib=found.usable_mib,
            guaranteed_mib=sum(e.placement.request.takes_mib(found) for e in held),
            loaned_mib=sum(e.loaned_mib for e in held),
            compute=sum(e.placement.request.compute for e in held),
            clients=len(held),
            loaned_compute=sum(e.loaned_compute for e in held),
        )

    def oversold(self) -> tuple[str, ...]:
        """Devices whose guarantees of memory, compute or clients exceed what they have."""
        tallies = Occupancy(self.inventory()).devices.values()
        return tuple(t.device.id for t in tallies if t.free_mib < 0 or t.free_compute < 0 or t.free_clients < 0)

    def _check(self, occupancy: Occupancy, placement: Placement) -> None:
        """Raise unless the slice can be counted beside what is."""
        request = placement.request
        check_request(request)
        if (held := occupancy.holders.get(request.id)) is not None:
            raise AlreadyReserved(f"instance {request.id!r} holds a slice of {held.device}; release it first")
        if len(set(placement.all_devices)) != request.devices:
            raise UnknownDevice(
                f"instance {request.id!r}: {len(set(placement.all_devices))} devices are named, "
                f"it asks for {request.devices}"
            )
        for number, device in enumerate(placement.all_devices):
            tally = occupancy.devices.get(device)
            if tally is None:
                raise UnknownDevice(f"instance {request.id!r}: device {device!r} is not in the fleet")
            if tally.device.node != placement.node:
                raise UnknownDevice(
                    f"instance {request.id!r}: device {device!r} is on node {tally.device.node!r}, "
                    f"not on {placement.node!r}"
                )
            if obstacles(tally, request):
                raise Oversold(f"instance {request.id!r} on {device}: {refuse([tally], request)}")
            if request.mechanism == "mig" and (
                number >= len(placement.mig) or placement.mig[number] not in windows(tally, request)
            ):
                raise Oversold(f"instance {request.id!r} on {device}: names no empty slots that it may take")

    def _with(self, entries: dict[str, Entry]) -> Self:
        return replace(self, entries=MappingProxyType(entries))
