"""What a plan costs while 300 models want a quarter more than 200 devices have, so that the fleet is divided anew
each second.

On virtual time, by the planner alone: loads wander by up to 1 percent a second, starts take 10 s and drains 2 s. It is
CPU time of this process, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from statistics import median
from typing import Any

from autoscaler.quota import SUFFER_S, Claim
from benchmarks.bars import Bar, at_most
from packer.inventory import Device, Inventory, Node
from tangram.core import convert
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Attempts, Desired, Division, Observed, Start, apply
from tangram.core.replica import Observation, Phase, Replica, observe
from tangram.spec import Model

MODELS, DEVICES, PLANS = 300, 200, 40
ASKED = 1.25
"""Of the fleet's compute."""
_SIZES = (("4Gi", 10), ("8Gi", 20), ("12Gi", 30), ("20Gi", 50))
_CAPACITY, _SLOTS = 10.0, 8.0
_START_S, _DRAIN_S = 10.0, 2.0
_SETTLED = 12
"""Plans not counted: the first fills the fleet, and then nobody is ready yet."""


def measure() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Milliseconds of CPU a plan, after the fleet was filled."""
    taken = _run(random.Random(1))
    usual, most = round(1000.0 * median(taken)), round(1000.0 * max(taken))
    figures = {"models": MODELS, "devices": DEVICES, "median ms": usual, "most ms": most}
    return figures, {"a plan that divides a full fleet, median ms of CPU": at_most(usual, 150)}


def _run(rng: random.Random) -> list[float]:
    fleet = Inventory(
        tuple(Node(f"n{i}") for i in range(DEVICES // 4)),
        tuple(Device(f"n{i // 4}/gpu-{i % 4}", f"n{i // 4}", "virtual", 40_960) for i in range(DEVICES)),
    )
    models = {f"m{i}": _model(f"m{i}", *rng.choice(_SIZES), rng.choice((0, 0, 0, 1))) for i in range(MODELS)}
    rates = {n: rng.uniform(5.0, 60.0) for n in models}
    asked = sum(rates[n] / _CAPACITY * m.spec.slice.compute for n, m in models.items())
    rates = {n: rate * ASKED * 100.0 * DEVICES / asked for n, rate in rates.items()}
    suffered = dict.fromkeys(models, 0.0)
    replicas: tuple[Replica, ...] = ()
    ordinals: dict[str, int] = {}
    attempts: dict[str, Attempts] = {}
    division: Division | None = None
    taken: list[float] = []
    for second in range(PLANS):
        now = 1000.0 + second
        there = Counter(r.model for r in replicas if r.live)
        desired: dict[str, Desired] = {}
        for name, model in models.items():
            rates[name] *= rng.uniform(0.99, 1.01)
            wanted = max(1, -int(-1.1 * rates[name] // _CAPACITY))
            suffered[name] += (max(0.0, 1.0 - there[name] / wanted) - suffered[name]) / SUFFER_S
            claim = Claim(name, 0, rates[name], _CAPACITY, _SLOTS, suffered=suffered[name])
            desired[name] = Desired(model, wanted, claim=claim)
        drained = frozenset(r.name for r in replicas if r.phase is Phase.DRAINING and r.since < now - _DRAIN_S)
        mix = convert.expected_mix({n: (want.model, want.count) for n, want in desired.items()})
        observed = Observed(replicas, drained, attempts, ordinals, mix=mix, division=division)
        ledger = ledger_of(fleet, replicas)
        begun = time.process_time()
        outcome = plan(observed, desired, ledger, now)
        taken.append(time.process_time() - begun)
        division = outcome.division
        attempts.update(outcome.attempts)
        for action in outcome.actions:
            if isinstance(action, Start):
                model_name, _, number = action.replica.name.rpartition("-")
                ordinals[model_name] = max(ordinals.get(model_name, 1), int(number) + 1)
        replicas = _lived(apply(replicas, outcome.actions, now), now)
    return taken[_SETTLED:]


def _lived(replicas: tuple[Replica, ...], now: float) -> tuple[Replica, ...]:
    """A second later: who has started is ready, and who was stopped has gone."""
    kept = []
    for replica in replicas:
        leaves = replica.phase is Phase.STOPPING
        ready = not leaves and (replica.phase is not Phase.STARTING or now - replica.since >= _START_S)
        seen = Observation(alive=not leaves, ready=ready, pid=1, started_at=replica.created_at)
        after, _ = observe(replica, seen, now)
        kept += [after] if after else []
    return tuple(kept)


def _model(name: str, memory: str, compute: int, priority: int) -> Model:
    return Model.model_validate(
        {
            "apiVersion": "tangram.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "priority": priority,
                "runtime": {"model": "/models/digits.py"},
                "slice": {"memory": {"request": memory}, "compute": compute},
                "scaling": {"minReplicas": 0, "maxReplicas": 20},
            },
        }
    )
