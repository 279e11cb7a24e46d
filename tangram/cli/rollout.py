"""`tangram rollout`: how a change of revision stands, and the way back."""

from __future__ import annotations

import time
from typing import Final

from tangram.cli.client import Client, CommandError, segment
from tangram.control.views import RolloutView

_POLL_S: Final = 0.25
_GOOD: Final = ("None", "Complete")


def status(client: Client, name: str) -> RolloutView:
    """How it stands now."""
    return RolloutView.model_validate(client.get(f"/models/{segment(name)}/rollout"))


def wait(client: Client, name: str, timeout_s: float) -> RolloutView:
    """Until it has ended well; CommandError where it has not."""
    until = time.monotonic() + timeout_s
    while True:
        view = status(client, name)
        if view.stage in _GOOD:
            return view
        if view.stage in ("RolledBack", "Cancelled"):
            raise CommandError(f"{name}: the rollout of revision {view.revision} ended: {view.message}")
        if time.monotonic() >= until:
            raise CommandError(f"{name}: the rollout is not over after {timeout_s:g} s: {summary(view)}")
        time.sleep(_POLL_S)


def undo(client: Client, name: str, to_revision: int | None) -> RolloutView:
    """Put an earlier revision in force again."""
    body = {} if to_revision is None else {"toRevision": to_revision}
    return RolloutView.model_validate(client.post(f"/models/{segment(name)}/rollout/undo", body))


def summary(view: RolloutView) -> str:
    """How it stands, in a line."""
    if view.stage == "None":
        return f"revision {view.revision} is the first; nothing has been rolled out since"
    text = f"{view.stage}: revision {view.former} to {view.revision}"
    if view.stage == "Canary":
        text += f", step {view.step} of {view.steps}: {view.percent} percent of the requests"
    if view.stage in ("Canary", "Rolling"):
        text += f"; {view.ready} ready of {view.wanted}, {view.old} of the former revision left"
    if view.requests:
        text += f"; {view.failures} of {view.requests} requests failed"
    return text + (f"; {view.message}" if view.message else "")


def text(view: RolloutView) -> str:
    """The summary and the revisions on record."""
    lines = [summary(view), "", "REVISION  ID        APPLIED              NOTE"]
    for one in view.revisions:
        applied = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.created_at))
        note = "current" if one.current else (f"rolled back: {one.failed}" if one.failed else "")
        lines.append(f"{one.number:<9} {one.revision}  {applied}  {note}".rstrip())
    return "\n".join(lines)
