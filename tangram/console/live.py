"""What `tangram top` draws, with rich: a line on the whole, the models, the devices with bars, the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tangram.console import tables, units
from tangram.control.views import DeviceView, ModelView, ReplicaView, StatusView

_BAR: Final = 10
_CALM: Final = frozenset({"Ready", "ScaledToZero"})
_TROUBLED: Final = frozenset(
    {"CrashLoopBackOff", "Unready", "NoFit", "NoReplicaReady", "ProgressDeadlineExceeded", "Shared"}
)


def picture(
    status: StatusView,
    models: Sequence[ModelView],
    replicas: Sequence[ReplicaView],
    devices: Sequence[DeviceView],
    now: float,
) -> RenderableType:
    """One look at everything."""
    return Group(
        head(status, models, now), Text(), _models(models), Text(), _devices(devices), Text(), _replicas(replicas, now)
    )


def away(why: str) -> RenderableType:
    """Shown while the controller does not answer."""
    return Text(f"{why}; waiting for it. The gateway serves on.", style="yellow")


def head(status: StatusView, models: Sequence[ModelView], now: float) -> Text:
    """One line on the whole."""
    known = [m.qps for m in models if m.qps is not None]
    connected = sum(w.connected for w in status.workers)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("tangram ", style="bold")
    text.append(
        f"up {units.age(status.started_at, now)}  {units.number(round(sum(known), 1)) if known else units.NONE} req/s  "
        f"{units.count(status.models, 'model')}  {units.count(status.replicas, 'replica')}  "
    )
    text.append(
        f"{connected}/{len(status.workers)} gateway workers",
        style="" if connected == len(status.workers) and connected else "bold red",
    )
    if status.adopting:
        text.append("  adopting", style="yellow")
    if status.oversold:
        text.append(f"  OVERSOLD: {', '.join(status.oversold)}", style="bold red")
    return text


def _table(*titles: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for title in titles:
        # Names give way before numbers do.
        narrowest = max(len(title), 4) if title in numbers else None
        table.add_column(title, justify="right" if title in numbers else "left", no_wrap=True, min_width=narrowest)
    return table


def _models(models: Sequence[ModelView]) -> Table:
    numbers = ("READY", "DESIRED", "QPS", "TARGET", "INFL", "QUEUE", "P50", "P99")
    table = _table("MODEL", *numbers, "STATUS", numbers=numbers)
    for m in models:
        status = tables.status_of(m)
        behind = "yellow" if m.ready < m.desired else ""
        table.add_row(
            m.name,
            Text(str(m.ready), style=behind),
            str(m.desired),
            units.number(m.qps),
            units.number(m.target_qps),
            str(m.in_flight),
            Text(str(m.queued), style="yellow" if m.queued else ""),
            units.milliseconds(m.p50_ms),
            units.milliseconds(m.p99_ms),
            Text(status, style=_style(status)),
        )
    return table


def _devices(devices: Sequence[DeviceView]) -> Table:
    table = _table("DEVICE", "MEMORY", "GIVEN", "USED", "COMPUTE", "", "REPLICAS", numbers=("USED", "REPLICAS"))
    for d in devices:
        usable = d.memory_total - d.memory_reserve
        table.add_row(
            Text(d.id, style="" if d.healthy else "red"),
            bar(d.memory_requested, usable),
            f"{units.memory(d.memory_requested)}/{units.memory(usable)}",
            units.memory(d.memory_used),
            bar(d.compute_requested, 100),
            f"{d.compute_requested}%",
            str(d.clients),
        )
    return table


def _replicas(replicas: Sequence[ReplicaView], now: float) -> Table:
    numbers = ("INFL", "CPU", "MEM", "RST", "AGE")
    table = _table("REPLICA", "STATUS", "DEVICE", *numbers, numbers=numbers)
    for r in replicas:
        table.add_row(
            r.name,
            Text(r.phase, style=_style(r.phase)),
            units.devices(r.devices),
            str(r.in_flight),
            units.percent(r.cpu_percent),
            units.memory(r.memory),
            str(r.restarts),
            units.age(r.created_at, now),
        )
    return table


def bar(part: float, whole: float, cells: int = _BAR) -> Text:
    """How full something is."""
    share = part / whole if whole > 0 else 0.0
    filled = min(cells, round(share * cells))
    style = "red" if share > 1 else "green"
    return Text("█" * filled, style=style) + Text("░" * (cells - filled), style="dim")


def _style(word: str) -> str:
    return "green" if word in _CALM else "red" if word in _TROUBLED else "yellow"
