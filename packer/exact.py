"""Exact moves on small fleets: the least number of ordered make-before-break moves that lets a request in.

Three steps, the first and the last programmes for CP-SAT (the extra `solver`):

1. *Static*: put everyone, the request included, anywhere; displace the fewest. Its optimum is a lower bound on moves,
   and no solution means that no sequence of moves can help. An order is then sought in which each move fits while the
   source is still held; mostly there is one, and then the plan is optimal.
2. *Reach*: where no such order exists, all that moves can reach is looked at, breadth first. On tight machines that is
   little, and either the shortest plan is found or it is proven that there is none.
3. *Stepwise*: exactly L moves in L steps, each fitting on top of what the step before left, the request last; for L
   from the lower bound up. This finds plans in which somebody steps aside for a while and moves twice.

Without the solver a depth-first search over moves, deepened by one move at a time and bounded in the states it visits,
does the same for short plans.

Only requests for one device each are moved or let in; Instances that hold several stay where they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from packer.fit import obstacles
from packer.inventory import Device, Inventory, Move, MovePlan, Node, Placement, SliceRequest
from packer.occupancy import Occupancy

_STATES: Final = 20_000
"""States that the search without a solver visits for one length of plan."""
_REACHED: Final = 4_000
"""States looked at one after another before the stepwise programme is asked."""
_EFFORT: Final = 2.0
"""Deterministic time of CP-SAT for one programme (about seconds)."""


@dataclass(frozen=True, slots=True)
class _Problem:
    items: tuple[SliceRequest, ...]
    """Those who may move, then the newcomer."""
    start: tuple[int, ...]
    """Bin of each mover."""
    bins: tuple[str, ...]
    node_of: tuple[int, ...]
    room: tuple[tuple[int, int, int], ...]
    """For each bin: MiB, percent, clients that movers and newcomer may fill."""
    hosts: tuple[tuple[int, int], ...]
    """For each node: CPU and MiB likewise."""
    allowed: tuple[tuple[int, ...], ...]


def least_moves(
    inventory: Inventory, request: SliceRequest, fixed: Collection[str] = (), most: int = 8
) -> MovePlan | None:
    """The plan of fewest moves, at most `most`; None where there is none (or none was found within the effort).

    `fixed` names Instances that stay where they are.
    """
    problem = _problem(inventory, request, fixed)
    if not problem.allowed[-1]:
        return None
    found = _solve(problem, most) if _solver() is not None else _search(problem, most)
    return None if found is None else _plan(inventory, problem, found)


def provable(inventory: Inventory, requests: Sequence[SliceRequest]) -> bool | None:
    """Whether the requests all fit the empty fleet, proven; None where the effort did not suffice.

    Raises RuntimeError without the solver.
    """
    cp = _solver()
    if cp is None:
        raise RuntimeError("OR-tools is not installed; install the extra 'solver'")
    empty = Inventory(inventory.nodes, inventory.devices)
    problem = _problem(empty, requests[-1], ())
    allowed = tuple(_allowed(empty, r) for r in requests)
    problem = _Problem(tuple(requests), (), problem.bins, problem.node_of, problem.room, problem.hosts, allowed)
    model, _ = _static(cp, problem)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = 10 * _EFFORT
    status = solver.solve(model)
    if status in (cp.OPTIMAL, cp.FEASIBLE):
        return True
    return False if status == cp.INFEASIBLE else None


def _solver() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    return cp_model


def _problem(inventory: Inventory, request: SliceRequest, fixed: Collection[str]) -> _Problem:
    held = set(fixed)
    movers = [p for p in inventory.placements if p.request.devices == 1 and p.request.id not in held]
    stay = {p.request.id for p in movers}
    rest = Inventory(
        inventory.nodes, inventory.devices, tuple(p for p in inventory.placements if p.request.id not in stay)
    )
    tallies = Occupancy(rest).devices
    bins = tuple(tallies)
    index = {b: i for i, b in enumerate(bins)}
    movers = [p for p in movers if p.device in index]
    nodes = {n.name: i for i, n in enumerate(inventory.nodes)}
    hosts = {t.host.node.name: t.host for t in tallies.values()}
    unbounded = 1 << 40
    items = (*(p.request for p in movers), request)
    return _Problem(
        items=items,
        start=tuple(index[p.device] for p in movers),
        bins=bins,
        node_of=tuple(nodes[t.host.node.name] for t in tallies.values()),
        room=tuple((t.free_mib, t.free_compute, t.free_clients) for t in tallies.values()),
        hosts=tuple(
            (
                unbounded if (h := hosts.get(n.name)) is None or (c := h.free_cpu_milli) is None else c,
                unbounded if h is None or (m := h.free_host_memory_mib) is None else m,
            )
            for n in inventory.nodes
        ),
        allowed=tuple(_allowed(rest, r) for r in items),
    )


def _allowed(inventory: Inventory, request: SliceRequest) -> tuple[int, ...]:
    """Bins that would take the request if no mover were there."""
    return tuple(i for i, t in enumerate(Occupancy(inventory).devices.values()) if not obstacles(t, request))


def _static(cp: Any, problem: _Problem) -> tuple[Any, list[dict[int, Any]]]:
    model = cp.CpModel()
    place: list[dict[int, Any]] = []
    for i in range(len(problem.items)):
        bins = set(problem.allowed[i]) | ({problem.start[i]} if i < len(problem.start) else set())
        row = {b: model.new_bool_var(f"x{i},{b}") for b in sorted(bins)}
        model.add_exactly_one(row.values())
        place.append(row)
    _capacities(model, problem, lambda i, b: place[i].get(b))
    if problem.start:
        model.maximize(sum(place[i][b] for i, b in enumerate(problem.start)))
    return model, place


def _capacities(model: Any, problem: _Problem, var: Any) -> None:
    """Device and host sums over the variables that say who lies where."""
    by_node: dict[int, list[tuple[int, Any]]] = {}
    for b in range(len(problem.bins)):
        here = [(i, v) for i in range(len(problem.items)) for v in [var(i, b)] if v is not None]
        if not here:
            continue
        memory, compute, clients = problem.room[b]
        model.add(sum(problem.items[i].memory_mib * v for i, v in here) <= memory)
        if any(problem.items[i].compute for i, _ in here):
            model.add(sum(problem.items[i].compute * v for i, v in here) <= compute)
        if len(here) > clients:
            model.add(sum(v for _, v in here) <= clients)
        by_node.setdefault(problem.node_of[b], []).extend(here)
    for node, here in by_node.items():
        cpu, memory = problem.hosts[node]
        if sum(problem.items[i].cpu_milli for i, _ in here) > cpu:
            model.add(sum(problem.items[i].cpu_milli * v for i, v in here) <= cpu)
        if sum(problem.items[i].host_memory_mib for i, _ in here) > memory:
            model.add(sum(problem.items[i].host_memory_mib * v for i, v in here) <= memory)


def _solve(problem: _Problem, most: int) -> list[tuple[int, int]] | None:
    """Moves (item, bin) in order, the newcomer's last."""
    cp = _solver()
    model, place = _static(cp, problem)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = _EFFORT
    status = solver.solve(model)
    if status == cp.INFEASIBLE:
        return None
    least = 1
    if status in (cp.OPTIMAL, cp.FEASIBLE):
        least = max(1, len(problem.start) - int(solver.best_objective_bound)) if problem.start else 0
        ends = [next(b for b, v in row.items() if solver.value(v)) for row in place]
        moved = [i for i, b in enumerate(problem.start) if ends[i] != b]
        if len(moved) <= most and (order := _ordered(problem, moved, ends)) is not None and len(moved) <= least + 1:
            if len(moved) == least:
                return order
            best: list[tuple[int, int]] | None = order
        else:
            best = None
    else:
        best = None
    longest = len(best) - 2 if best else most
    found, exhausted = _reach(problem, longest, _REACHED)
    if found is not None or exhausted:
        return found or best
    effort = _EFFORT / 2
    for length in range(least, longest + 1):
        found, effort = _stepwise(cp, problem, length, effort)
        if found is not None or effort <= 0:
            return found or best
    return best


def _reach(problem: _Problem, most: int, limit: int) -> tuple[list[tuple[int, int]] | None, bool]:
    """Breadth first over all that moves can reach: (the shortest plan, whether everything was seen).

    Placements that differ only in which of two like slices or like devices are meant are one state.
    """
    new = len(problem.items) - 1
    sizes = [(r.memory_mib, r.compute, r.cpu_milli, r.host_memory_mib) for r in problem.items]
    kinds = [(problem.room[b], problem.node_of[b]) for b in range(len(problem.bins))]

    def key(where: tuple[int, ...]) -> tuple[Any, ...]:
        here: list[list[Any]] = [[] for _ in kinds]
        for i, b in enumerate(where):
            here[b].append((sizes[i], problem.allowed[i]))
        return tuple(sorted((kinds[b], tuple(sorted(h))) for b, h in enumerate(here)))

    start = tuple(problem.start)
    seen = {key(start)}
    layer: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = [(start, [])]
    for depth in range(most + 1):
        following = []
        for where, path in layer:
            load = _Load(problem, where)
            for b in problem.allowed[new]:
                if load.fits(new, b):
                    return [*path, (new, b)], True
            if depth == most:
                continue
            for i, source in enumerate(where):
                for b in problem.allowed[i]:
                    if b == source or not load.fits(i, b):
                        continue
                    moved = (*where[:i], b, *where[i + 1 :])
                    state = key(moved)
                    if state in seen:
                        continue
                    if len(seen) >= limit:
                        return None, False
                    seen.add(state)
                    following.append((moved, [*path, (i, b)]))
        layer = following
    return None, True


def unreachable(inventory: Inventory, request: SliceRequest, most: int = 8, states: int = 300_000) -> bool:
    """Whether it is proven, by looking at everything reachable, that no plan of at most `most` moves exists."""
    found, exhausted = _reach(_problem(inventory, request, ()), most, states)
    return found is None and exhausted


def _ordered(problem: _Problem, moved: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]] | None:
    """An order in which each move fits with its source still held, if there is one (depth first, dead ends kept)."""
    load = _Load(problem)
    dead: set[frozenset[int]] = set()

    def go(left: frozenset[int]) -> list[tuple[int, int]] | None:
        if not left:
            last = len(problem.items) - 1
            return [(last, ends[last])] if load.fits(last, ends[last]) else None
        if left in dead:
            return None
        for i in sorted(left):
            if load.fits(i, ends[i]):
                load.add(i, ends[i], 1)
                load.add(i, problem.start[i], -1)
                rest = go(left - {i})
                load.add(i, problem.start[i], 1)
                load.add(i, ends[i], -1)
                if rest is not None:
                    return [(i, ends[i]), *rest]
        dead.add(left)
        return None

    return go(frozenset(moved))


def _stepwise(cp: Any, problem: _Problem, length: int, effort: float) -> tuple[list[tuple[int, int]] | None, float]:
    """(the plan of this length, effort that is left)."""
    model = cp.CpModel()
    count, new = len(problem.items) - 1, len(problem.items) - 1
    bins = [sorted({*problem.allowed[i], problem.start[i]}) for i in range(count)]
    at: list[dict[tuple[int, int], Any]] = [{(i, b): int(problem.start[i] == b) for i in range(count) for b in bins[i]}]
    jumps: list[dict[tuple[int, int], Any]] = []
    for step in range(length):
        before = at[-1]
        jump = {(i, b): model.new_bool_var(f"m{step},{i},{b}") for i in range(count) for b in problem.allowed[i]}
        after = {k: model.new_bool_var(f"y{step},{k[0]},{k[1]}") for k in before}
        model.add_exactly_one(jump.values())
        for i in range(count):
            leaves = sum(jump[i, b] for b in problem.allowed[i])
            model.add_exactly_one(after[i, b] for b in bins[i])
            for b in bins[i]:
                if (i, b) in jump:
                    model.add(after[i, b] >= jump[i, b])
                    model.add(before[i, b] + jump[i, b] <= 1)
                model.add(after[i, b] >= before[i, b] - leaves)
        held = dict(before)
        _capacities(
            model,
            problem,
            lambda i, b, held=held, jump=jump: (
                None if (i, b) not in held else held[i, b] + jump[i, b] if (i, b) in jump else held[i, b]
            ),
        )
        at.append(after)
        jumps.append(jump)
    entry = {b: model.new_bool_var(f"e{b}") for b in problem.allowed[new]}
    model.add_exactly_one(entry.values())
    final = at[-1]
    _capacities(model, problem, lambda i, b: entry.get(b) if i == new else final.get((i, b)))
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    effort -= float(solver.response_proto.deterministic_time)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return None, effort
    moves = [next(k for k, v in jump.items() if solver.value(v)) for jump in jumps]
    return [*moves, (new, next(b for b, v in entry.items() if solver.value(v)))], effort


class _Load:
    """What movers take of each bin and host."""

    def __init__(self, problem: _Problem, where: Sequence[int] | None = None) -> None:
        self._problem = problem
        self._free = [list(r) for r in problem.room]
        self._hosts = [list(h) for h in problem.hosts]
        for i, b in enumerate(problem.start if where is None else where):
            self.add(i, b, 1)

    def add(self, item: int, bin_: int, sign: int) -> None:
        request = self._problem.items[item]
        free, host = self._free[bin_], self._hosts[self._problem.node_of[bin_]]
        free[0] -= sign * request.memory_mib
        free[1] -= sign * request.compute
        free[2] -= sign
        host[0] -= sign * request.cpu_milli
        host[1] -= sign * request.host_memory_mib

    def fits(self, item: int, bin_: int) -> bool:
        request = self._problem.items[item]
        free, host = self._free[bin_], self._hosts[self._problem.node_of[bin_]]
        return (
            request.memory_mib <= free[0]
            and request.compute <= free[1]
            and free[2] >= 1
            and request.cpu_milli <= host[0]
            and request.host_memory_mib <= host[1]
        )

    def key(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(f) for f in self._free)


def _search(problem: _Problem, most: int) -> list[tuple[int, int]] | None:
    """Depth first, one move deeper at a time."""
    new = len(problem.items) - 1
    for depth in range(most + 1):
        load, where = _Load(problem), list(problem.start)
        seen: dict[tuple[tuple[int, ...], ...], int] = {}

        def go(
            left: int, load: _Load = load, where: list[int] = where, seen: dict[Any, int] = seen
        ) -> list[tuple[int, int]] | None:
            if left == 0:
                return next(([(new, b)] for b in problem.allowed[new] if load.fits(new, b)), None)
            key = load.key()
            if seen.get(key, -1) >= left or len(seen) > _STATES:
                return None
            seen[key] = left
            for i in range(len(where)):
                source = where[i]
                for b in problem.allowed[i]:
                    if b == source or not load.fits(i, b):
                        continue
                    load.add(i, b, 1)
                    load.add(i, source, -1)
                    where[i] = b
                    rest = go(left - 1)
                    where[i] = source
                    load.add(i, source, 1)
                    load.add(i, b, -1)
                    if rest is not None:
                        return [(i, b), *rest]
            return None

        found = go(depth)
        if found is not None:
            return found
    return None


def _plan(inventory: Inventory, problem: _Problem, found: Sequence[tuple[int, int]]) -> MovePlan:
    devices: dict[str, Device] = {d.id: d for d in inventory.devices}
    nodes: dict[str, Node] = {n.name: n for n in inventory.nodes}
    where = {p.request.id: p for p in inventory.placements}
    moves = []
    for item, b in found[:-1]:
        request = problem.items[item]
        device = devices[problem.bins[b]]
        target = Placement(request, device.id, nodes[device.node].name, why="moved to make room")
        moves.append(Move(where[request.id], target))
        where[request.id] = target
    last, b = found[-1]
    device = devices[problem.bins[b]]
    why = f"after {len(moves)} move{'s' if len(moves) != 1 else ''}" if moves else "fits as things lie"
    return MovePlan(tuple(moves), Placement(problem.items[last], device.id, device.node, why=why))
