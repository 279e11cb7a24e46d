"""The commands that change: apply, set, delete; and the wait until what was changed is so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tangram.cli.client import Client, CommandError, Missing, segment
from tangram.control.views import ModelView, ReplicaView
from tangram.spec import SpecError, read_yaml

_POLL_S: Final = 0.25
Say = Callable[[str], None]


def read(file: Path) -> list[dict[str, Any]]:
    """The documents of a file as they are sent: relative paths made absolute; CommandError where it cannot be read."""
    try:
        documents = read_yaml(file)
    except SpecError as error:
        raise CommandError(str(error), 2) from None
    if not documents:
        raise CommandError(f"{file}: holds no documents; declare at least one Model", 2)
    for index, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            text = f"document {index}: {document!r} is not a mapping; write a Model, Fleet or Tenant"
            raise CommandError(f"{file}: {text}", 2)
    return documents


def apply(client: Client, file: Path, *, dry_run: bool) -> list[dict[str, str]]:
    """Apply a file; what changed."""
    documents = read(file)
    try:
        answer = client.post("/apply", {"documents": _plain(documents), "dryRun": dry_run})
    except CommandError as error:
        if error.code != 2:
            raise
        raise CommandError("\n".join(f"{file}: {line}" for line in str(error).splitlines()), 2) from None
    return list(answer["applied"])


def scale(
    client: Client,
    name: str,
    *,
    target_qps: float | None,
    min_replicas: int | None,
    max_replicas: int | None,
    replicas: str | None,
) -> ModelView:
    """Change scaling fields; at least one must be given."""
    wanted: dict[str, Any] = {"targetQPS": target_qps, "minReplicas": min_replicas, "maxReplicas": max_replicas}
    if replicas is not None:
        if replicas != "auto" and not (replicas.isascii() and replicas.isdigit()):
            raise CommandError(f"--replicas: {replicas!r} is neither a whole number nor auto", 2)
        wanted["replicas"] = replicas if replicas == "auto" else int(replicas)
    wanted = {field: value for field, value in wanted.items() if value is not None}
    if not wanted:
        raise CommandError("nothing to set; give one of --target-qps, --min-replicas, --max-replicas and --replicas", 2)
    return ModelView.model_validate(client.patch(f"/models/{segment(name)}/scale", wanted))


def delete(client: Client, name: str) -> None:
    """Remove a model."""
    client.delete(f"/models/{segment(name)}")


def wait_ready(client: Client, names: Sequence[str], timeout_s: float) -> None:
    """Until every model serves its spec with the replicas it wants; CommandError says what is missing."""
    until = time.monotonic() + timeout_s
    while True:
        missing = {name: why for name in names if (why := _missing(client, name))}
        if not missing:
            return
        if time.monotonic() >= until:
            raise CommandError(
                "\n".join(f"{name}: not ready after {timeout_s:g} s: {why}" for name, why in missing.items())
            )
        time.sleep(_POLL_S)


def wait_gone(client: Client, name: str, timeout_s: float) -> None:
    """Until nothing of a removed model is left."""
    until = time.monotonic() + timeout_s
    while left := [r["name"] for r in client.get("/replicas")["items"] if r["model"] == name]:
        if time.monotonic() >= until:
            raise CommandError(f"{name}: still there after {timeout_s:g} s: {', '.join(left)}")
        time.sleep(_POLL_S)


def _missing(client: Client, name: str) -> str:
    """What a model lacks of serving its spec; empty when nothing."""
    try:
        model = ModelView.model_validate(client.get(f"/models/{segment(name)}"))
    except Missing:
        return "it was deleted meanwhile"
    replicas = [ReplicaView.model_validate(r) for r in client.get("/replicas", model=name)["items"]]
    current = [r for r in replicas if r.revision == model.revision and r.phase not in ("Draining", "Stopping")]
    ready = sum(r.phase == "Ready" for r in current)
    old = [r.name for r in replicas if r.revision != model.revision]
    least = model.desired if model.window else model.min_replicas
    least = least if model.fixed_replicas is None else model.fixed_replicas
    if ready >= max(least, min(model.desired, model.max_replicas)) and not old:
        return ""
    told = [f"{r.name} is {r.phase}" + (f" ({r.message})" if r.message else "") for r in current if r.phase != "Ready"]
    hindered = ("Placed", "Progressing")
    told += [f"{c.reason}: {c.message}" for c in model.conditions if c.type in hindered and c.status == "False"]
    told += [f"{name} of the former revision is still there" for name in old]
    return "; ".join([f"{ready} of {max(least, model.desired)} ready", *told])


def _plain(value: Any) -> Any:
    """YAML's dates are text in JSON."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
