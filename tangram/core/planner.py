"""What to do next: `plan(observed, desired, ledger, now)` is one pure function.

It looks at the replicas there are and the count each model should have, and returns ordered actions. Higher priority
plans first. Whatever the actions start is reserved in the ledger they were planned against; `apply` gives the replicas
as they are once the actions are recorded, which is done before any is taken. Planning again after `apply` yields
nothing: a plan applied twice changes nothing.

Rules, in the order they are applied to a model:

1. What drains and has nothing in flight, or has drained for as long as it may, is stopped.
2. A start that passes its progress deadline is ended; its device is avoided for a while, and the model's next attempt
   waits with back-off.
3. A replica on a device that is unhealthy or gone leaves it: at once where it is not ready, else when its sibling on
   another device is. It serves on where there is no room for one.
4. A crashed replica is started again, on its own slice, when its back-off is over.
5. Too few: drains are undone before anything new is started; then new replicas are placed, as many as fit. Those that
   do not fit are refusals with the packer's reasons, and nothing is left pending.
6. Too many: crashed, starting and unready replicas go before ready ones, the youngest first; a ready one is drained.
   Among ready ones, one on the device that holds most of its siblings goes first.
7. What fits nowhere, but would after some of the others moved: they move, make-before-break. A sibling starts on the
   other device, the one that moves drains when its sibling is ready, and the next plan finds the room. One such plan is
   under way at a time, and moves an hour are capped. A sibling does not count while the one that it replaces is there.
   When there is nothing else to do, and from time to time, a move is made that leaves more useful room.
8. Another revision is rolled in make-before-break: one more than wanted may exist while one is replaced, and an old
   replica drains when its successor is ready. Where the fleet has no room for one more, an old one drains first, if
   others are ready to carry the load or it is the only one; nobody does where that makes no room, or where moves make
   it.
9. What finds no place although every model keeps what it has is divided anew (division.py): models that have more than
   their share make room for those that have less, unless it would be in vain (futility.py) or moves make it. What each
   was granted is part of the plan.
10. A slice grows at once where the model allows it and its load wants more than its ready replicas can do (loans.py):
    by what its device has not guaranteed to anyone, and only until others need it or more replicas are ready.
11. While a canary is held, the wanted replicas of the former revision stay (and scale), and as many of the new one as
    the canary wants are added; where the fleet is full, an old one makes room if others carry the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from packer.inventory import Inventory
from packer.ledger import Ledger
from tangram.core.division import divide
from tangram.core.draft import ROOM, Draft
from tangram.core.futility import in_vain
from tangram.core.plans import Desired, Drain, Observed, Plan, Stop
from tangram.core.replica import Replica


def ledger_of(inventory: Inventory, replicas: Sequence[Replica]) -> Ledger:
    """The ledger in which every replica that exists, whatever its phase, holds its slice."""
    return Ledger.rebuild(Inventory(inventory.nodes, inventory.devices, tuple(r.placement for r in replicas)))


def plan(observed: Observed, desired: Mapping[str, Desired], ledger: Ledger, now: float) -> Plan:
    """Ordered actions that bring the observed replicas towards the desired counts.

    New replicas have neither port nor slot yet: who records the actions gives them theirs.
    """
    outcome = _plan(observed, desired, ledger, now)
    fleet = Inventory(ledger.nodes, ledger.devices)
    vain = in_vain(observed, desired, outcome, fleet, now)
    short = outcome.refusals.keys() - outcome.waiting.keys() - vain.keys()
    if not any(n in desired and desired[n].claim for n in short):
        return replace(outcome, waiting={**_told(vain), **outcome.waiting})
    there = Counter(r.model for r in observed.replicas if r.live)
    # Nobody leaves for what moves will let in.
    moving = outcome.refusals.keys() & outcome.waiting.keys()
    content = vain.keys() | moving
    able = {n: replace(w, count=min(w.count, there[n])) if n in content else w for n, w in desired.items()}
    division = divide(able, observed.replicas, fleet, observed.division, now)
    shares = {n: share for n, share in division.shares.items() if n not in moving}
    shared = {n: able[n].limited(shares[n]) if n in shares else want for n, want in desired.items()}
    divided = _plan(observed, shared, ledger, now)
    # What was refused is told in the packer's words.
    refusals = {**{n: outcome.refusals[n] for n in vain if n in outcome.refusals}, **divided.refusals}
    going = {r.name for r in observed.replicas if not r.live}
    going |= {a.replica for a in divided.actions if isinstance(a, Drain | Stop)}
    leave = f": {', '.join(sorted(going))} leave{'s' * (len(going) == 1)}" if going else ""
    waiting = {n: f"{text}{leave}" if text is ROOM else text for n, text in divided.waiting.items()}
    for name, share in shares.items():
        if share.granted < share.wanted and (standing := outcome.refusals.get(name)):
            refusals[name] = (standing[0],) * (share.wanted - share.granted)
    # That moves were looked for in vain is remembered; what the second plan says of a model's starts comes last.
    attempts = {**outcome.attempts, **divided.attempts}
    waiting = {**_told(vain), **waiting}
    return replace(divided, refusals=refusals, waiting=waiting, attempts=attempts, division=division)


def _plan(observed: Observed, desired: Mapping[str, Desired], ledger: Ledger, now: float) -> Plan:
    draft = Draft(observed, ledger, now)
    by_model: dict[str, list[Replica]] = {}
    for replica in observed.replicas:
        by_model.setdefault(replica.model, []).append(replica)
    for name in sorted(by_model.keys() - desired.keys()):
        draft.remove(by_model[name])
    draft.expect(desired)
    for want in sorted(desired.values(), key=lambda d: (-d.model.spec.priority, d.model.name)):
        draft.settle(want, by_model.get(want.model.name, []))
    if observed.tidy:
        draft.tidy()
    draft.lend()
    return draft.finish()


def _told(reasons: Mapping[str, str]) -> dict[str, str]:
    return {name: why for name, why in reasons.items() if why}
