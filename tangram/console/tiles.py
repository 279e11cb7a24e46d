"""Devices drawn as text: which slice takes how much of each, and what is left over.

Each device has two bars, one for memory and one for compute. A model is a letter; its slices on a device alternate
between the capital and the small letter, so that each is a run of its own. What is free is dots, the reserve is #.
A slice always shows as one character at least while the bar has as many. Nothing here relies on colour.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tangram.console import units
from tangram.control.views import DeviceView, PackView, ReplicaView

FREE: Final = "."
RESERVE: Final = "#"
#: Slices that the device counts and nobody listed.
UNLISTED: Final = "?"
_LETTERS: Final = tuple(zip(string.ascii_uppercase, string.ascii_lowercase, strict=True))
#: All models after the twenty-sixth.
_OTHERS: Final = ("*", "+")
#: Ways over PCIe.
_NEAREST: Final = ("BOARD", "PIX", "PXB", "PHB", "NODE", "SYS")
_LEAD: Final = len("  compute  |")
_TAIL: Final = len("|  100%  1023Mi free")
_NARROWEST: Final = 50


@dataclass(frozen=True, slots=True)
class Tile:
    """One slice to draw: MiB and percent of a device."""

    device: str
    model: str
    memory: int
    compute: int
    whole: bool = False
    """It has all of the device's memory, whatever that is."""


def of_pack(view: PackView) -> list[Tile]:
    """The slices of a placement worked out; replicas without a place have none."""
    return [Tile(d, r.model, r.memory, r.compute, len(r.devices) > 1) for r in view.replicas for d in r.devices]


def of_replicas(replicas: Iterable[ReplicaView]) -> list[Tile]:
    """The slices that replicas hold."""
    return [Tile(d, r.model, r.memory_request, r.compute, len(r.devices) > 1) for r in replicas for d in r.devices]


def draw(devices: Sequence[DeviceView], tiles: Sequence[Tile], width: int = 80) -> str:
    """All devices, a legend and the fleet's sums, in lines of at most `width` characters (50 at least)."""
    if not devices:
        return "no devices"
    width = max(width, _NARROWEST)
    here: dict[str, list[Tile]] = {device.id: [] for device in devices}
    usable = {device.id: device.memory_total - device.memory_reserve for device in devices}
    for tile in tiles:
        if tile.device in here:
            here[tile.device].append(replace(tile, memory=usable[tile.device]) if tile.whole else tile)
    for held in here.values():
        held.sort(key=lambda tile: tile.model)
    letters = _letters(tile.model for held in here.values() for tile in held)
    blocks = [_device(device, here[device.id], letters, width) for device in devices]
    blocks.append([*_legend(here, letters, devices), *_sums(devices)])
    return "\n\n".join("\n".join(_cut(line, width) for line in block) for block in blocks)


def apportion(weights: Sequence[int], cells: int) -> list[int]:
    """Share out `cells` by weight, by largest remainder; a weight above 0 gets one at least while there are enough."""
    total = sum(weights)
    if total <= 0:
        return [0] * len(weights)
    floor = int(sum(w > 0 for w in weights) <= cells)
    shares = [w * cells / total for w in weights]
    counts = [max(math.floor(s), floor if w > 0 else 0) for w, s in zip(weights, shares, strict=True)]
    while (spare := cells - sum(counts)) != 0:
        step = 1 if spare > 0 else -1
        # The one furthest below (or above) its share; the first of equals.
        candidates = [i for i, w in enumerate(weights) if w > 0 and (step > 0 or counts[i] > floor)]
        counts[max(candidates, key=lambda i: step * (shares[i] - counts[i]))] += step
    return counts


def _letters(models: Iterable[str]) -> dict[str, tuple[str, str]]:
    return {m: _LETTERS[i] if i < len(_LETTERS) else _OTHERS for i, m in enumerate(dict.fromkeys(models))}


def _device(device: DeviceView, held: Sequence[Tile], letters: Mapping[str, tuple[str, str]], width: int) -> list[str]:
    health = "" if device.healthy else ", UNHEALTHY"
    head = f"{device.id}  {device.model}, {device.clients} of {device.max_clients} clients{_links(device)}{health}"
    symbols: list[str] = []
    seen: dict[str, int] = {}
    for tile in held:
        seen[tile.model] = seen.get(tile.model, -1) + 1
        symbols.append(letters[tile.model][seen[tile.model] % 2])
    usable = device.memory_total - device.memory_reserve
    memory = [tile.memory for tile in held]
    compute = [tile.compute for tile in held]
    cells = width - _LEAD - _TAIL
    return [
        head,
        "  memory   |"
        + _bar(symbols, memory, device.memory_requested, usable, device.memory_reserve, cells)
        + _tail(device.memory_requested, usable, units.memory),
        "  compute  |"
        + _bar(symbols, compute, device.compute_requested, 100, 0, cells)
        + _tail(device.compute_requested, 100, units.percent),
    ]


def _links(device: DeviceView) -> str:
    """By strength: "4 NVLinks to gpu-1, PIX to gpu-2"; what has NVLink is not told again by its distance."""
    by: dict[str, list[str]] = {}
    for other, count in sorted(device.links.items(), key=lambda item: (-item[1], item[0])):
        by.setdefault(f"{count} NVLink{'s' if count > 1 else ''}", []).append(other)
    for other, far in sorted(device.distances.items(), key=lambda item: (_NEAREST.index(item[1]), item[0])):
        if other not in device.links:
            by.setdefault(far, []).append(other)
    parts = (f"{way} to {', '.join(d.removeprefix(f'{device.node}/') for d in others)}" for way, others in by.items())
    return "".join(f", {part}" for part in parts)


def _bar(symbols: Sequence[str], amounts: Sequence[int], requested: int, usable: int, reserve: int, cells: int) -> str:
    unlisted = max(0, requested - sum(amounts))
    free = max(0, usable - sum(amounts) - unlisted)
    counts = apportion([*amounts, unlisted, free, reserve], cells)
    return "".join(s * n for s, n in zip([*symbols, UNLISTED, FREE, RESERVE], counts, strict=True))


def _tail(requested: int, usable: int, text: Callable[[float | None], str]) -> str:
    share = f"|  {_share(requested, usable):>4}  "
    return share + (f"{text(usable - requested)} free" if requested <= usable else f"{text(requested - usable)} OVER")


def _share(part: int, whole: int) -> str:
    return units.percent(100 * part / whole) if whole > 0 else units.NONE


def _legend(
    here: Mapping[str, Sequence[Tile]], letters: Mapping[str, tuple[str, str]], devices: Sequence[DeviceView]
) -> list[str]:
    slices: dict[str, list[Tile]] = {}
    for held in here.values():
        for tile in held:
            slices.setdefault(tile.model, []).append(tile)
    own = {m: pair for m, pair in letters.items() if pair is not _OTHERS}
    longest = max(map(len, own), default=0)
    lines = [f"  {pair[0]} {pair[1]}  {m:<{longest}}  {_of_model(slices[m])}" for m, pair in own.items()]
    if others := len(letters) - len(own):
        lines.append(f"  * +  {others} more model{'s' if others > 1 else ''}")
    signs = [f"{FREE} free"]
    if any(d.memory_reserve for d in devices):
        signs.append(f"{RESERVE} reserve")
    if any(
        d.memory_requested > sum(t.memory for t in here[d.id])
        or d.compute_requested > sum(t.compute for t in here[d.id])
        for d in devices
    ):
        signs.append(f"{UNLISTED} not listed here")
    return [*lines, "  " + "   ".join(signs)]


def _of_model(tiles: Sequence[Tile]) -> str:
    if tiles[0].whole:
        return f"{len(tiles)} whole devices"
    sizes = dict.fromkeys((t.memory, t.compute) for t in tiles)
    each = " or ".join(f"{units.memory(m)} and {f'{c}%' if c else 'best-effort compute'}" for m, c in sizes)
    return f"{len(tiles)} slice{'s' if len(tiles) > 1 else ''} of {each}"


def _sums(devices: Sequence[DeviceView]) -> list[str]:
    usable = sum(d.memory_total - d.memory_reserve for d in devices)
    given = sum(d.memory_requested for d in devices)
    compute = sum(d.compute_requested for d in devices)
    free = [(max(0, d.memory_total - d.memory_reserve - d.memory_requested), d) for d in devices]
    most, where = max(free, key=lambda pair: pair[0])
    stranded = sum(mib for mib, d in free if d.compute_requested >= 100 or d.clients >= d.max_clients)
    lines = [
        f"  {len(devices)} device{'s' if len(devices) > 1 else ''}: "
        f"{_share(given, usable)} of {units.memory(usable)} memory given, "
        f"{_share(compute, 100 * len(devices))} of compute",
        f"  left over: {units.memory(sum(mib for mib, _ in free))} memory, at most {units.memory(most)} on one device "
        f"({where.id})",
    ]
    if stranded:
        lines.append(f"  of it {units.memory(stranded)} where no compute or client is left to go with it")
    return lines


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 3] + "..."
