"""The Open Inference Protocol (KServe v2) over HTTP.

The gateway answers for the server (`/v2`, `/v2/health/live`, `/v2/health/ready`) and says from its table whether a
model is ready: asking so must not start a replica, or a dashboard would keep every model up for ever; nor does asking
for statistics. All else about a model goes to a replica with its path as it came, and wakes the model: `infer`, and
metadata too, since clients read it just before their first inference and would find the model asleep for ever.
"""

from __future__ import annotations

from urllib.parse import unquote

from gateway.protocols.route import SAFE, Answer, Route


def error(status: int, message: str, reason: str) -> dict[str, object]:
    """Body of an error, as the protocol has it."""
    return {"error": message}


def repeatable(path: str) -> bool:
    """Whether a POST to this path may be sent twice: inference has no side effects."""
    parts = path.split("/")
    return parts[:3] == ["", "v2", "models"] and parts[-1] == "infer"


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
