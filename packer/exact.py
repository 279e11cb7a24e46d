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

Of plans with as few moves, one that keeps replicas of a group apart (first on devices, then on nodes) is taken.

Only requests for one device each are moved or let in; Instances that hold several stay where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Final

from packer.fit import obstacles
from packer.inventory import Device, Inventory, Move, MovePlan, Node, Placement, SliceRequest
from packer.occupancy import Occupancy
from packer.reach import SAME_DEVICE, Problem, deepen, ordered, reach

_REACHED: Final = 3_000
"""States looked at one after another before the stepwise programme is asked."""
_EFFORT: Final = 1.5
"""Deterministic time of CP-SAT for one programme (about seconds)."""


def least_moves(
    inventory: Inventory, request: SliceRequest, fixed: Collection[str] = (), most: int = 8
) -> MovePlan | None:
    """The plan of fewest moves, at most `most`; None where there is none (or none was found within the effort).

    `fixed` names Instances that stay where they are.
    """
    problem = _problem(inventory, request, fixed)
    if not problem.allowed[-1]:
        return None
    found = _solve(problem, most) if _solver() is not None else deepen(problem, most)
    return None if found is None else _plan(inventory, problem, found)


def provable(inventory: Inventory, requests: Sequence[SliceRequest]) -> bool | None:
    """Whether the requests all fit the empty fleet, proven; None where the effort did not suffice.

    Raises RuntimeError without the solver.
    """
    cp = _required()
    empty = Inventory(inventory.nodes, inventory.devices)
    problem = _problem(empty, requests[-1], ())
    allowed = tuple(_allowed(empty, r) for r in requests)
    problem = Problem(tuple(requests), (), problem.bins, problem.node_of, problem.room, problem.hosts, allowed)
    model, _, _ = _static(cp, problem)
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


def _required() -> Any:
    cp = _solver()
    if cp is None:
        raise RuntimeError("OR-tools is not installed; install the extra 'solver'")
    return cp


def _problem(inventory: Inventory, request: SliceRequest, fixed: Collection[str]) -> Problem:
    held = set(fixed)
    # Devices in use by another mechanism stay as they are: two exclude each other.
    movers = [
        p
        for p in inventory.placements
        if p.request.devices == 1 and p.request.id not in held and p.request.mechanism == request.mechanism
    ]
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
    members = Counter([*(p.request.group for p in inventory.placements), request.group])
    numbers = {g: i for i, g in enumerate(sorted(g for g, n in members.items() if n > 1))}
    return Problem(
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
        groups=tuple(numbers.get(r.group, -1) for r in items),
        apart=tuple(
            Counter({numbers[g]: n for g, n in t.groups.items() if n and g in numbers}) for t in tallies.values()
        ),
    )


def _allowed(inventory: Inventory, request: SliceRequest) -> tuple[int, ...]:
    """Bins that would take the request if no mover were there."""
    return tuple(i for i, t in enumerate(Occupancy(inventory).devices.values()) if not obstacles(t, request))


def _static(cp: Any, problem: Problem) -> tuple[Any, list[dict[int, Any]], int]:
    """(the programme, its variables by item and bin, the most that crowding can cost)."""
    model = cp.CpModel()
    place: list[dict[int, Any]] = []
    for i in range(len(problem.items)):
        bins = set(problem.allowed[i]) | ({problem.start[i]} if i < len(problem.start) else set())
        row = {b: model.new_bool_var(f"x{i},{b}") for b in sorted(bins)}
        model.add_exactly_one(row.values())
        place.append(row)
    _capacities(model, problem, lambda i, b: place[i].get(b))
    worst = 0
    if problem.start:
        stay = sum(place[i][b] for i, b in enumerate(problem.start))
        together, worst = _together(model, problem, lambda i, b: place[i].get(b))
        model.maximize((worst + 1) * stay - together)
    return model, place, worst


def _together(model: Any, problem: Problem, var: Any) -> tuple[Any, int]:
    """(an expression for how crowded groups lie, the most that it can be)."""
    terms: list[Any] = []
    worst = 0
    nodes = sorted(set(problem.node_of))
    places: list[tuple[tuple[int, ...], int]] = [((b,), SAME_DEVICE) for b in range(len(problem.bins))]
    places += [(tuple(b for b, n in enumerate(problem.node_of) if n == node), 1) for node in nodes if len(nodes) > 1]
    for group in sorted({g for g in problem.groups if g >= 0}):
        members = [i for i, g in enumerate(problem.groups) if g == group]
        for bins, weight in places:
            here = [v for i in members for b in bins if (v := var(i, b)) is not None]
            there = sum(problem.apart[b][group] for b in bins)
            if here and len(members) + there > 1:
                most = len(members) + there - 1
                excess = model.new_int_var(0, most, "")
                model.add(excess >= sum(here) + there - 1)
                terms.append(weight * excess)
                worst += weight * most
    return sum(terms), worst


def _capacities(model: Any, problem: Problem, var: Any) -> None:
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


def _solve(problem: Problem, most: int) -> list[tuple[int, int]] | None:
    """Moves (item, bin) in order, the newcomer's last."""
    cp = _solver()
    model, place, worst = _static(cp, problem)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = _EFFORT
    status = solver.solve(model)
    if status == cp.INFEASIBLE:
        return None
    least = 1
    if status in (cp.OPTIMAL, cp.FEASIBLE):
        stay = int((solver.best_objective_bound + worst) // (worst + 1))
        least = max(1, len(problem.start) - stay) if problem.start else 0
        ends = [next(b for b, v in row.items() if solver.value(v)) for row in place]
        moved = [i for i, b in enumerate(problem.start) if ends[i] != b]
        if len(moved) <= most and (order := ordered(problem, moved, ends)) is not None and len(moved) <= least + 1:
            if len(moved) == least:
                return order
            best: list[tuple[int, int]] | None = order
        else:
            best = None
    else:
        best = None
    longest = len(best) - 2 if best else most
    found, exhausted = reach(problem, longest, _REACHED)
    if found is not None or exhausted:
        return found or best
    effort = _EFFORT / 2
    for length in range(least, longest + 1):
        found, effort = _stepwise(cp, problem, length, effort)
        if found is not None or effort <= 0:
            return found or best
    return best


def fewest(inventory: Inventory, request: SliceRequest, fixed: Collection[str] = ()) -> int | None:
    """How many have to move at least for the request to fit, in whatever order; None where no moves help.

    Proven by the static programme, so a lower bound on ordered plans. Raises RuntimeError without the solver.
    """
    cp = _required()
    problem = _problem(inventory, request, fixed)
    if not problem.allowed[-1]:
        return None
    model, _, worst = _static(cp, problem)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = _EFFORT
    if solver.solve(model) == cp.INFEASIBLE:
        return None
    if not problem.start:
        return 0
    return max(0, len(problem.start) - int((solver.best_objective_bound + worst) // (worst + 1)))


def unreachable(inventory: Inventory, request: SliceRequest, most: int = 8, states: int = 300_000) -> bool:
    """Whether it is proven, by looking at everything reachable, that no plan of at most `most` moves exists."""
    found, exhausted = reach(_problem(inventory, request, ()), most, states)
    return found is None and exhausted


def _stepwise(cp: Any, problem: Problem, length: int, effort: float) -> tuple[list[tuple[int, int]] | None, float]:
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
    if any(g >= 0 for g in problem.groups):
        together, _ = _together(model, problem, lambda i, b: entry.get(b) if i == new else final.get((i, b)))
        model.minimize(together)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    effort -= float(solver.response_proto.deterministic_time)
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return None, effort
    moves = [next(k for k, v in jump.items() if solver.value(v)) for jump in jumps]
    return [*moves, (new, next(b for b, v in entry.items() if solver.value(v)))], effort


def _plan(inventory: Inventory, problem: Problem, found: Sequence[tuple[int, int]]) -> MovePlan:
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
