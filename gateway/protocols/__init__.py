"""What a request is for: the model it names, where it goes, and the shape of an error it can read.

`classify` looks at the method and the target only. A route either goes to a model (`answer` is FORWARD), names its
model in the body (BODY), or is answered from the table by the gateway itself.
"""

from __future__ import annotations

from urllib.parse import unquote

from gateway.protocols import oip, openai
from gateway.protocols.route import SAFE, Answer, ErrorShape, Route, plain_error

__all__ = ["Answer", "ErrorShape", "Route", "classify", "plain_error"]


def classify(method: str, target: str) -> Route:
    """The route of a request with an origin-form target."""
    path, _, _ = target.partition("?")
    if path == "/v2" or path.startswith("/v2/"):
        return oip.classify(method, target)
    if path == "/v1" or path.startswith("/v1/"):
        return openai.classify(method, target)
    if path.startswith("/models/"):
        return _generic(method, target)
    return Route(Answer.NOT_FOUND, plain_error)


def _generic(method: str, target: str) -> Route:
    path, mark, query = target.partition("?")
    name, slash, rest = path.removeprefix("/models/").partition("/")
    inner = slash + rest or "/"
    openai_like = inner.startswith("/v1/")
    return Route(
        Answer.FORWARD if name else Answer.NOT_FOUND,
        openai.error if openai_like else plain_error,
        model=unquote(name),
        target=inner + mark + query,
        repeatable=method in SAFE
        or (method == "POST" and (openai.repeatable(inner) if openai_like else oip.repeatable(inner))),
    )
