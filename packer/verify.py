"""Re-checks any fleet and any refusal from first principles. Shares no code with fit, score, place and the ledger.

`verify` says in words everything that is wrong with who lies where; `verify_refusal` tries every Device for a request
that was refused. Both are for tests, benchmarks and the loop's own check that nothing is oversold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from packer.inventory import Device, Inventory, MigInstance, Move, MovePlan, Node, NoFit, Placement, SliceRequest
from packer.mig import geometry_of, verify_layout


def verify(inventory: Inventory, placed: Collection[str] = ()) -> list[str]:
    """All that is wrong, one sentence each; empty when the fleet is sound.

    `placed` names Instances that were placed just now: those must also lie on a healthy Device of a schedulable Node.
    Others may be left over from before it broke.
    """
    problems = _twice("node", [n.name for n in inventory.nodes])
    problems += _twice("device", [d.id for d in inventory.devices])
    problems += _twice("instance", [p.request.id for p in inventory.placements])
    nodes = {n.name: n for n in inventory.nodes}
    devices = {d.id: d for d in inventory.devices}
    problems += [f"device {d.id}: its node {d.node} is unknown" for d in devices.values() if d.node not in nodes]
    known_ids = {p.request.id for p in inventory.placements}
    problems += [f"instance {i}: said to be placed and is not" for i in placed if i not in known_ids]

    on_device: dict[str, list[Placement]] = defaultdict(list)
    on_node: dict[str, list[Placement]] = defaultdict(list)
    for p in inventory.placements:
        for name in (p.device, *p.more_devices):
            on_device[name].append(p)
        if 1 + len(p.more_devices) != p.request.devices or p.device in p.more_devices:
            problems.append(
                f"instance {p.request.id}: lies on {1 + len({*p.more_devices} - {p.device})} devices, "
                f"asked for {p.request.devices}"
            )
        on_node[p.node].append(p)
        device, node = devices.get(p.device), nodes.get(p.node)
        if device is None:
            problems.append(f"instance {p.request.id}: its device {p.device} is unknown")
        if node is None:
            problems.append(f"instance {p.request.id}: its node {p.node} is unknown")
        if device is not None and device.node != p.node:
            problems.append(f"instance {p.request.id}: device {p.device} is on node {device.node}, not on {p.node}")
        if p.mig and (len(p.mig) != 1 + len(p.more_devices) or p.request.mechanism != "mig"):
            problems.append(
                f"instance {p.request.id}: names {len(p.mig)} GPU instances on {1 + len(p.more_devices)} devices, "
                f"by mechanism {p.request.mechanism}"
            )
        for further in p.more_devices:
            if (other := devices.get(further)) is None or other.node != p.node:
                problems.append(f"instance {p.request.id}: its device {further} is not on node {p.node}")
            elif node is not None:
                fresh = p.request.id in placed
                problems += [f"instance {p.request.id}: {text}" for text in _wrong(p, other, node, fresh)]
        if device is not None and node is not None:
            problems += [f"instance {p.request.id}: {text}" for text in _wrong(p, device, node, p.request.id in placed)]
    for device in devices.values():
        problems += [f"device {device.id}: {text}" for text in _overfull_device(device, on_device[device.id])]
    for node in nodes.values():
        problems += [f"node {node.name}: {text}" for text in _overfull_node(node, on_node[node.name])]
    return problems


def verify_refusal(inventory: Inventory, refused: NoFit) -> list[str]:
    """All that is wrong with a refusal: Devices that would take the slice, counts and shortfalls that do not add up."""
    problems: list[str] = []
    request = refused.request
    for device in inventory.devices if request.devices == 1 else ():
        node = next(n for n in inventory.nodes if n.name == device.node)
        others = tuple(p for p in inventory.placements if p.node == device.node and p.request.id != request.id)
        beside = tuple(d for d in inventory.devices if d.node == device.node)
        if _would_take(node, device, beside, others, request):
            problems.append(f"device {device.id} would take {request.id}")
    counted = sum(r.devices for r in refused.refusals)
    if counted != len(inventory.devices):
        problems.append(f"{counted} devices are accounted for, the fleet has {len(inventory.devices)}")
    for refusal in refused.refusals:
        members = [d for d in inventory.devices if d.model == refusal.device_class]
        if not any(_reason_holds(refusal.reason, request, d, inventory) for d in members):
            problems.append(f"{refusal.device_class}: {refusal.reason} keeps the slice off none of its devices")
        if refusal.missing_mib and refusal.missing_mib not in {
            _takes(request, d) - (d.memory_mib - d.reserve_mib) + sum(_takes(r, d) for r in _requests_on(inventory, d))
            for d in members
        }:
            problems.append(f"{refusal.device_class}: on no device exactly {refusal.missing_mib} MiB are missing")
        if refusal.missing_compute and refusal.missing_compute not in {
            request.compute - min(d.compute, 100) + sum(r.compute for r in _requests_on(inventory, d)) for d in members
        }:
            problems.append(f"{refusal.device_class}: on no device exactly {refusal.missing_compute}% are missing")
    return problems


def _would_take(
    node: Node, device: Device, beside: tuple[Device, ...], others: tuple[Placement, ...], request: SliceRequest
) -> bool:
    """Whether the request, for one slice, could lie on the device; for MIG in any profile at any start."""
    geometry = geometry_of(device.model, device.memory_mib) if request.mechanism == "mig" else None
    ways: list[tuple[MigInstance, ...]] = [()]
    if geometry is not None:
        ways = [(MigInstance(s, p.name),) for p in geometry.profiles for s in p.starts]
    one = replace(request, devices=1)
    return any(
        not verify(Inventory((node,), beside, (*others, Placement(one, device.id, node.name, mig=way))), (request.id,))
        for way in ways
    )


def _twice(what: str, names: list[str]) -> list[str]:
    return [f"{what} {name}: is there {names.count(name)} times" for name in sorted({*names}) if names.count(name) > 1]


def _wrong(placement: Placement, device: Device, node: Node, fresh: bool) -> list[str]:
    """What is wrong with one slice on its own, whoever else is there."""
    request = placement.request
    problems = []
    if request.memory_mib < 1:
        problems.append(f"{request.memory_mib} MiB is no guarantee")
    if request.memory_limit_mib is not None and request.memory_limit_mib < request.memory_mib:
        problems.append(f"limit {request.memory_limit_mib} MiB is below the guarantee of {request.memory_mib} MiB")
    if not 0 <= request.compute <= 100:
        problems.append(f"{request.compute}% is no share of a device's compute")
    if request.whole and (request.compute != 100 or request.memory_mib > device.memory_mib - device.reserve_mib):
        problems.append(
            f"asks for whole devices with {request.memory_mib} MiB and {request.compute}%, "
            f"{device.id} has {device.memory_mib - device.reserve_mib} MiB"
        )
    if request.device_models and device.model not in request.device_models:
        problems.append(f"lies on model {device.model}, which it does not accept")
    for key, value in request.labels.items():
        if value not in (device.labels.get(key), node.labels.get(key)):
            problems.append(f"neither {device.id} nor {node.name} carries {key}={value}")
    if request.mechanism not in device.mechanisms:
        problems.append(f"{device.id} does not offer mechanism {request.mechanism}")
    if fresh and not device.healthy:
        problems.append(f"was placed on {device.id}, which is unhealthy")
    if fresh and not node.schedulable:
        problems.append(f"was placed on {node.name}, which takes no new slices")
    return problems


def _takes(request: SliceRequest, device: Device) -> int:
    """MiB of the device that the Instance has to itself."""
    return max(device.memory_mib - device.reserve_mib, request.memory_mib) if request.whole else request.memory_mib


def _overfull_device(device: Device, held: list[Placement]) -> list[str]:
    problems = [
        f"{p.request.id} has it whole, and {len(held) - 1} more lie there" for p in held if p.request.whole and held[1:]
    ]
    memory = sum(_takes(p.request, device) for p in held)
    if memory > device.memory_mib - device.reserve_mib:
        problems.append(f"{memory} MiB guaranteed of {device.memory_mib} less {device.reserve_mib} MiB reserve")
    compute = sum(p.request.compute for p in held)
    if compute > device.compute or compute > 100:
        problems.append(f"{compute}% of compute given of {min(device.compute, 100)}%")
    if len(held) > device.max_clients:
        problems.append(f"{len(held)} clients, of which it can serve {device.max_clients}")
    if len({p.request.mechanism for p in held}) > 1:
        problems.append(f"mechanisms {', '.join(sorted({p.request.mechanism for p in held}))} at once")
    return problems + _wrong_layout(device, [p for p in held if p.request.mechanism == "mig"])


def _wrong_layout(device: Device, held: list[Placement]) -> list[str]:
    """What the driver would not allow of the MIG slices on one device."""
    geometry = geometry_of(device.model, device.memory_mib)
    if geometry is None:
        return [f"no MIG geometry is known for {device.model}"] if held else []
    problems = []
    layout = []
    for p in held:
        number = (p.device, *p.more_devices).index(device.id)
        if number >= len(p.mig):
            problems.append(f"{p.request.id} has MIG slots and they are not recorded")
            continue
        instance = p.mig[number]
        layout.append(instance)
        fits = [
            profile.memory_mib >= p.request.memory_mib and 100 * profile.slices >= p.request.compute * geometry.slices
            for profile in geometry.profiles
            if profile.name == instance.profile
        ]
        if fits == [False]:
            problems.append(f"{instance.profile} is too small for {p.request.id}")
    return problems + verify_layout(geometry.model, layout)


def _overfull_node(node: Node, held: list[Placement]) -> list[str]:
    problems = []
    cpu = sum(p.request.cpu_milli for p in held)
    if node.cpu_milli is not None and cpu > node.cpu_milli:
        problems.append(f"{cpu}m of host CPU given of {node.cpu_milli}m")
    memory = sum(p.request.host_memory_mib for p in held)
    if node.memory_mib is not None and memory > node.memory_mib:
        problems.append(f"{memory} MiB of host memory given of {node.memory_mib} MiB")
    return problems


def _requests_on(inventory: Inventory, device: Device) -> list[SliceRequest]:
    return [p.request for p in inventory.placements if device.id in (p.device, *p.more_devices)]


def _reason_holds(reason: str, request: SliceRequest, device: Device, inventory: Inventory) -> bool:
    """Whether what a refusal says of a class is true of this Device."""
    node = next(n for n in inventory.nodes if n.name == device.node)
    here = _requests_on(inventory, device)
    on_node = [p.request for p in inventory.placements if p.node == node.name]
    usable = device.memory_mib - device.reserve_mib
    cpu_limit, host_limit = node.cpu_milli, node.memory_mib
    match reason:
        case "memory":
            return sum(_takes(r, device) for r in here) + request.memory_mib > usable
        case "compute":
            return sum(r.compute for r in here) + request.compute > min(device.compute, 100)
        case "clients":
            return len(here) >= device.max_clients
        case "host-cpu":
            return cpu_limit is not None and sum(r.cpu_milli for r in on_node) + request.cpu_milli > cpu_limit
        case "host-memory":
            total = sum(r.host_memory_mib for r in on_node) + request.host_memory_mib
            return host_limit is not None and total > host_limit
        case "mixed":
            return any(r.mechanism != request.mechanism for r in here)
        case "unhealthy":
            return not (device.healthy and node.schedulable)
        case "model":
            return bool(request.device_models) and device.model not in request.device_models
        case "label":
            return any(v not in (device.labels.get(k), node.labels.get(k)) for k, v in request.labels.items())
        case "mechanism":
            unknown = geometry_of(device.model, device.memory_mib) is None
            return request.mechanism not in device.mechanisms or (request.mechanism == "mig" and unknown)
        case "devices":
            beside = tuple(d for d in inventory.devices if d.node == device.node)
            others = tuple(p for p in inventory.placements if p.node == device.node)
            able = [d for d in beside if _would_take(node, d, beside, others, request)]
            return len(able) < request.devices
        case "occupied":
            return request.whole and bool(here)
        case "too-large":
            empty = replace(device, healthy=True)
            return not _would_take(replace(node, schedulable=True), empty, (empty,), (), request)
        case "too-many":
            host = replace(node, schedulable=True)
            beside = tuple(replace(d, healthy=True) for d in inventory.devices if d.node == node.name)
            return sum(_would_take(host, d, beside, (), request) for d in beside) < request.devices
        case "slots":
            others = tuple(p for p in inventory.placements if device.id in (p.device, *p.more_devices))
            return not _would_take(node, device, (device,), tuple(replace(p, node=node.name) for p in others), request)
        case _:
            return False


def verify_plan(inventory: Inventory, plan: MovePlan) -> list[str]:
    """All that is wrong with a plan of moves: at every step the mover holds its source and its target at once."""
    before = set(verify(inventory))
    problems, held = _step_by_step(inventory, plan.moves)
    if plan.placement.request.id in held:
        problems.append(f"{plan.placement.request.id} is placed already")
    last = replace(inventory, placements=(*held.values(), plan.placement))
    problems += [t for t in verify(last, (plan.placement.request.id,)) if t not in before]
    return problems


def verify_moves(inventory: Inventory, moves: Sequence[Move]) -> list[str]:
    """The same for moves that let nobody in."""
    return _step_by_step(inventory, moves)[0]


def _step_by_step(inventory: Inventory, moves: Sequence[Move]) -> tuple[list[str], dict[str, Placement]]:
    """(what is wrong, who lies where after the moves)."""
    held = {p.request.id: p for p in inventory.placements}
    before = set(verify(inventory))
    problems: list[str] = []
    for number, move in enumerate(moves, 1):
        request = move.source.request
        if held.get(request.id) != move.source:
            problems.append(f"move {number}: {request.id} does not lie where the move takes it from")
            continue
        if move.target.request != request:
            problems.append(f"move {number}: {request.id} is changed by the move")
        sibling = replace(move.target, request=replace(request, id=f"{request.id} (sibling)"))
        step = replace(inventory, placements=(*held.values(), sibling))
        problems += [f"move {number}: {text}" for text in verify(step, (sibling.request.id,)) if text not in before]
        held[request.id] = move.target
    return problems, held
