"""`tangram top`: models, replicas and devices as they are now, once a second, or once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tangram.cli.client import Client, NotRunning
from tangram.console import live
from tangram.control.views import DeviceView, ModelView, ReplicaView, StatusView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def top(client: Client, console: Console, *, once: bool, interval_s: float) -> None:
    """Draw until interrupted. A controller that is away for a while is said so and waited for."""
    if once:
        console.print(look(client))
        return
    from rich.live import Live

    with Live(look(client), console=console, screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval_s)
            try:
                screen.update(look(client), refresh=True)
            except NotRunning as error:
                screen.update(live.away(str(error)), refresh=True)


def look(client: Client) -> RenderableType:
    """One picture."""
    return live.picture(
        StatusView.model_validate(client.get("/status")),
        [ModelView.model_validate(m) for m in client.get("/models")["items"]],
        [ReplicaView.model_validate(r) for r in client.get("/replicas")["items"]],
        [DeviceView.model_validate(d) for d in client.get("/devices")["items"]],
        time.time(),
    )
