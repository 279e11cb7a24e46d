"""OpenAI's API: the model is named in the JSON body, or in the path of `/v1/models/{model}`.

`/v1/models` lists what the table holds: any model may be asked for through `/v1`, and one that does not speak it
answers so itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import unquote

from pydantic_core import from_json

from gateway.protocols.route import SAFE, Answer, Route

#: A body is read whole to find the model; a larger one is refused with 413.
MAX_BODY: Final = 16 * 1024 * 1024


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
    path, _, _ = target.partition("?")
    if path == "/v1/models" and method in SAFE:
        return Route(Answer.LIST, error)
    if path.startswith("/v1/models/") and method in SAFE:
        return Route(Answer.DESCRIBE, error, model=unquote(path.removeprefix("/v1/models/")))
    if method != "POST" or len(path) <= len("/v1/"):
        return Route(Answer.NOT_FOUND, error)
    return Route(Answer.BODY, error, target=target, repeatable=repeatable(path))


def model_of(body: bytes) -> str:
    """The model that a JSON body names; BadBody says what is wrong with it."""
    document: Any
    try:
        document = from_json(body)
    except ValueError:
        # The fast parser refuses a little that JSON allows (lone surrogates), so it does not have the last word.
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
