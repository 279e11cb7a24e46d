"""OpenAI's API: the model is named in the JSON body, in a field of a form (files), or in the target.

A body is read until the model is known: a JSON body whole, a form only as far as the field `model`. The target names
it in `/v1/models/{model}` and, for WebSockets, in `/v1/realtime?model=`.

`/v1/models` lists what the table holds: any model may be asked for through `/v1`, and one that does not speak it
answers so itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from pydantic_core import SchemaValidator, ValidationError, core_schema

from gateway.protocols.route import SAFE, Answer, Route

#: So much of a body is read to find the model; where it is not known by then, the answer is 413.
MAX_BODY: Final = 16 * 1024 * 1024
#: Reads a body whole, and makes nothing of it but the model's name. Of several keys `model` the last counts, as in
#: Python's own parser.
_NAMED: Final = SchemaValidator(
    core_schema.typed_dict_schema(
        {"model": core_schema.typed_dict_field(core_schema.str_schema(strict=True))}, extra_behavior="ignore"
    )
)


class BadBody(ValueError):
    """A body that names no model."""


def error(status: int, message: str, reason: str) -> dict[str, object]:
    """Body of an error, as OpenAI's clients read it."""
    if status == 429:
        kind = "rate_limit_error"
    elif status == 404 and reason == "unknown":
        kind, reason = "invalid_request_error", "model_not_found"
    else:
        kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": reason}}


def repeatable(path: str) -> bool:
    """Whether a POST to this path may be sent twice: an embedding is a function of its input."""
    return path == "/v1/embeddings"


def classify(method: str, target: str) -> Route:
    """The route of a target under /v1."""
    path, _, query = target.partition("?")
    if path == "/v1/models" and method in SAFE:
        return Route(Answer.LIST, error)
    if path.startswith("/v1/models/") and method in SAFE:
        return Route(Answer.DESCRIBE, error, model=unquote(path.removeprefix("/v1/models/")))
    if path == "/v1/realtime" and method == "GET":
        named = parse_qs(query).get("model", [""])[0]
        return Route(Answer.FORWARD if named else Answer.NOT_FOUND, error, model=named, target=target)
    if method != "POST" or len(path) <= len("/v1/"):
        return Route(Answer.NOT_FOUND, error)
    return Route(Answer.BODY, error, target=target, repeatable=repeatable(path))


def model_of(body: bytes) -> str:
    """The model that a JSON body names; BadBody says what is wrong with it."""
    try:
        found: str = _NAMED.validate_json(body)["model"]
    except ValidationError:
        # It is no such object; or it is JSON that only the slower parser takes (lone surrogates, another encoding).
        return _judged(body)
    return found or _judged(body)


def _judged(body: bytes) -> str:
    document: Any
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise BadBody("the body is not valid JSON; send an object with a key 'model'") from None
    if not isinstance(document, dict):
        raise BadBody("the body is not a JSON object; send an object with a key 'model'")
    name = document.get("model")
    if not isinstance(name, str) or not name:
        raise BadBody("the body names no model; send a key 'model' with the name of one")
    return name


def model_object(name: str) -> dict[str, object]:
    """One model as `/v1/models` shows it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "tangram"}


def model_list(names: Iterable[str]) -> dict[str, object]:
    """The answer to `/v1/models`."""
    return {"object": "list", "data": [model_object(name) for name in names]}
