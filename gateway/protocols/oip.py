"""The Open Inference Protocol (KServe v2) over HTTP.

The gateway answers for the server (`/v2`, `/v2/health/live`, `/v2/health/ready`) and says from its table whether a
model is ready: asking so must not start a replica, or a dashboard would keep every model up for ever; nor does asking
for statistics. All else about a model goes to a replica with its path as it came, and wakes the model: `infer`, and
metadata too, since clients read it just before their first inference and would find the model asleep for ever. So do
Triton's extensions `generate`, `generate_stream` and `stats`.

The repository index is answered from the table too. What a server offers to one who owns it is refused: loading and
unloading (the controller decides that), trace and log settings, shared memory of the server's machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote

from gateway.protocols.route import SAFE, Answer, Route


def error(status: int, message: str, reason: str) -> dict[str, object]:
    """Body of an error, as the protocol has it."""
    return {"error": message}


def repeatable(path: str) -> bool:
    """Whether a POST to this path may be sent twice: inference has no side effects."""
    parts = path.split("/")
    return parts[:3] == ["", "v2", "models"] and parts[-1] == "infer"


#: Extensions that concern the server itself, by the part of the path after /v2.
_OWNERS: Final = frozenset({"repository", "logging", "trace", "systemsharedmemory", "cudasharedmemory"})
#: The index request has at most one key.
MAX_INDEX_BODY: Final = 4096


def control(path: str) -> bool:
    """Whether a path under /v2 is for the owner of a server only."""
    parts = [unquote(part) for part in path.split("/") if part]
    if parts[:1] != ["v2"]:
        return False
    if parts[1:2] == ["models"]:
        return "trace" in parts[3:]
    return bool(_OWNERS & set(parts[1:2]))


def index(models: Iterable[tuple[str, bool, str]], *, ready_only: bool) -> list[dict[str, object]]:
    """The repository index of models given as (name, whether ready, why not)."""
    return [
        {"name": name, "version": "1", "state": "READY" if ready else "UNAVAILABLE", "reason": reason}
        for name, ready, reason in models
        if ready or not ready_only
    ]


def wants_ready_only(body: bytes) -> bool:
    """Whether an index request asks for ready models only. Raises ValueError where it is not one."""
    document: Any = json.loads(body) if body.strip() else {}
    wanted = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(wanted, bool):
        raise ValueError("send nothing, or a JSON object with a boolean 'ready'")
    return wanted


def classify(method: str, target: str) -> Route:
    """The route of a target under /v2."""
    path, _, _ = target.partition("?")
    parts = path.rstrip("/").split("/")[2:]
    safe = method in SAFE
    if not parts and safe:
        return Route(Answer.SERVER, error)
    if parts == ["health", "live"] and safe:
        return Route(Answer.LIVE, error)
    if parts == ["health", "ready"] and safe:
        return Route(Answer.READY, error)
    if parts == ["repository", "index"] and (safe or method == "POST"):
        return Route(Answer.INDEX, error)
    if control(path):
        return Route(Answer.CONTROL, error)
    if len(parts) < 2 or parts[0] != "models" or not parts[1]:
        return Route(Answer.NOT_FOUND, error)
    name, rest = unquote(parts[1]), parts[2:]
    if rest[:1] == ["versions"] and len(rest) >= 2:
        rest = rest[2:]
    if rest == ["ready"] and safe:
        return Route(Answer.MODEL_READY, error, model=name)
    return Route(
        Answer.FORWARD,
        error,
        model=name,
        target=target,
        repeatable=safe or (method == "POST" and rest == ["infer"]),
        wakes=not (safe and rest == ["stats"]),
    )
