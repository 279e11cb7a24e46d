"""What a client is told when something went wrong, in the shape of the protocol it speaks."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web

from tangram.node.runtimes.embedded.api import UnsupportedError

_log = logging.getLogger("tangram.embedded")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NotFoundError(Exception):
    """The text names what there is instead."""


class NotReadyError(Exception):
    """The model is still loading."""


def explain(error: Exception) -> tuple[int, str]:
    """Status and text for a client; nothing of the model's insides is told."""
    match error:
        case ValueError():
            return 400, str(error)
        case NotFoundError() | UnsupportedError():
            return 404, str(error)
        case NotReadyError():
            return 503, str(error)
        case web.HTTPException():
            return error.status, error.text or error.reason
        case _:
            return 500, f"the model failed with {type(error).__name__}; its log says more"


def error_body(path: str, status: int, text: str) -> bytes:
    """OpenAI's shape under /v1, the Open Inference Protocol's everywhere else."""
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        code = "model_not_found" if status == 404 else None
        return json.dumps({"error": {"message": text, "type": kind, "param": None, "code": code}}).encode()
    return json.dumps({"error": text}).encode()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into an answer; what is not the client's fault is logged with its traceback."""
    try:
        return await handler(request)
    except Exception as error:
        status, text = explain(error)
        if status == 500:
            rid = request.headers.get("X-Request-ID", "-")
            _log.exception("%s %s failed (request %s)", request.method, request.path, rid)
        headers = {"Retry-After": "1"} if status == 503 else {}
        if isinstance(error, web.HTTPMethodNotAllowed):
            headers["Allow"] = error.headers["Allow"]
        return web.Response(
            status=status,
            body=error_body(request.path, status, text),
            content_type="application/json",
            headers=headers,
        )
