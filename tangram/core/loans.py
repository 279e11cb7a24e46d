"""Which slices may have more of their device's compute than they are guaranteed, and for how long.

A loan helps at once, where another replica takes its time to start. It is made of what nobody on the device is
guaranteed, so no slice ever has less than its own; it is taken back, in the same plan, when a new slice needs it, and
when the model's load no longer wants it (its siblings are ready). Loans are worked out anew with each plan: of a
device's free compute the highest priority is served first, and equals get shares by what they want.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from packer.ledger import Ledger
from tangram.core.plans import Desired, Resize
from tangram.core.replica import Phase, Replica


def wanted(want: Desired, replica: Replica) -> int:
    """Percent beyond its slice that the replica should have, if its device had all that is asked of it."""
    compute = replica.placement.request.compute
    if replica.phase is not Phase.READY or replica.revision != want.model.revision or want.boost <= 1.0:
        return 0
    return max(0, min(want.model.spec.slice.effective_compute_limit, round(compute * want.boost)) - compute)


def resizes(desired: Mapping[str, Desired], replicas: Sequence[Replica], ledger: Ledger) -> list[Resize]:
    """The changes, those that give back first; `ledger` knows every slice that is held or about to be."""
    asked: dict[str, dict[str, list[tuple[Replica, int]]]] = {}
    loans = {r.name: 0 for r in replicas if r.loan}
    there = {d.id for d in ledger.devices}
    for replica in replicas:
        want = desired.get(replica.model) if replica.placement.device in there else None
        if want is not None and (more := wanted(want, replica)):
            asked.setdefault(replica.placement.device, {}).setdefault(replica.model, []).append((replica, more))
    for device, models in asked.items():
        for level in sorted({desired[m].model.spec.priority for m in models}, reverse=True):
            equals = sorted(
                (e for m, there in models.items() if desired[m].model.spec.priority == level for e in there),
                key=lambda e: e[0].name,
            )
            free = ledger.balance(device).loanable_compute
            total = sum(more for _, more in equals)
            for replica, more in equals:
                loan = more if total <= free else more * free // total
                ledger = ledger.lend_compute(replica.name, loan)
                loans[replica.name] = loan
    table = {r.name: r for r in replicas}
    changed = [
        Resize(n, table[n].model, loan, _why(table[n], loan)) for n, loan in loans.items() if loan != table[n].loan
    ]
    return sorted(changed, key=lambda a: (a.loan > table[a.replica].loan, a.replica))


def _why(replica: Replica, loan: int) -> str:
    compute = replica.placement.request.compute
    if loan > replica.loan:
        return f"{compute} percent and {loan} on loan until more replicas are ready"
    if loan:
        return f"{compute} percent and {loan} on loan: its device has or its load wants no more"
    return f"{compute} percent, as it is guaranteed"
