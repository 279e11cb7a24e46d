"""OpenAI's routes: models, embeddings, completions and chat completions, the latter two also streamed (SSE).

A field that would change the answer and that a model here cannot honour is refused by name; fields that are only
advice (user, metadata, store) are ignored.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiohttp import web

from tangram.node.runtimes.embedded.api import BadRequestError, Model
from tangram.node.runtimes.embedded.errors import NotFoundError, error_body, explain

if TYPE_CHECKING:
    from tangram.node.runtimes.embedded.server import Server

_log = logging.getLogger("tangram.embedded")

#: Fields that are refused unless they hold one of the values that mean nothing.
_UNSUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
}
_MAX_CHOICES: Final = 16
_COMPLETION_TOKENS: Final = 16


class StopCutter:
    """Cuts a text that comes in pieces before the first stop string, holding back only what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be sent now that this piece has come."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more pieces come."""
        held, self._held = self._held, ""
        return held


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request for text; one choice for each prompt."""

    prompts: tuple[str, ...]
    max_tokens: int
    temperature: float
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    chat: bool


@dataclass(slots=True)
class Piece:
    """Text to send for a choice; the last one of a choice has a finish reason."""

    choice: int
    text: str
    tokens: int = 0
    finish: str | None = None


def parse_generation(body: Mapping[str, Any], model: Model, *, chat: bool) -> Generation:
    """Check the body of a (chat) completions request; BadRequestError names the field, the value and the mend."""
    for field, neutral in _UNSUPPORTED.items():
        if (value := body.get(field)) is not None and value not in neutral:
            raise BadRequestError(f"{field}: {value!r} is not supported by this server; leave it out")
    if chat:
        prompts: tuple[str, ...] = (model.chat_prompt(_messages(body.get("messages"))),)
    else:
        prompts = _strings(body.get("prompt", ""), "prompt")
    count = _integer(body, "n", 1, low=1)
    if count * len(prompts) > _MAX_CHOICES:
        raise BadRequestError(f"n: {count * len(prompts)} choices are asked for; at most {_MAX_CHOICES} a request")
    limit = "max_completion_tokens" if chat and body.get("max_completion_tokens") is not None else "max_tokens"
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError(f"stream_options: {options!r} is not an object")
    temperature = body.get("temperature")
    if temperature is None:
        temperature = 1.0
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise BadRequestError(f"temperature: {temperature!r} is not a number from 0 to 2")
    return Generation(
        prompts=tuple(p for p in prompts for _ in range(count)),
        max_tokens=_integer(body, limit, model.default_max_tokens if chat else _COMPLETION_TOKENS, low=1),
        temperature=float(temperature),
        seed=None if body.get("seed") is None else _integer(body, "seed", 0),
        stop=tuple(s for s in _strings(body.get("stop") or [], "stop") if s),
        stream=_boolean(body, "stream"),
        include_usage=_boolean(options, "include_usage"),
        chat=chat,
    )


def _integer(body: Mapping[str, Any], field: str, default: int, low: int | None = None) -> int:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or (low is not None and value < low):
        raise BadRequestError(
            f"{field}: {value!r} is not a whole number" + ("" if low is None else f" of {low} or more")
        )
    return value


def _boolean(body: Mapping[str, Any], field: str) -> bool:
    value = body.get(field)
    if value not in (None, True, False):
        raise BadRequestError(f"{field}: {value!r} is not true or false")
    return bool(value)


def _strings(value: object, field: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadRequestError(f"{field}: must be a string or a list of strings (token numbers are not supported)")
    return tuple(value)


def _messages(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRequestError("messages: must be a list with at least one message")
    messages: list[tuple[str, str]] = []
    for index, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise BadRequestError(f"messages[{index}]: must be an object with a role and a content")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
            content = None if None in parts else "".join(map(str, parts))
        if not isinstance(content, str):
            raise BadRequestError(f"messages[{index}].content: must be text; other content is not supported")
        messages.append((role, content))
    return messages


async def generate(server: Server, model: Model, asked: Generation) -> AsyncGenerator[Piece, None]:
    """The choices one after the other, in pieces fit to be sent; the finish of each has its token count."""
    for choice, prompt in enumerate(asked.prompts):
        seed = None if asked.seed is None else asked.seed + choice
        cutter = StopCutter(asked.stop)
        tokens = 0

        def start(prompt: str = prompt, seed: int | None = seed) -> Any:
            return model.generate(prompt, asked.max_tokens, asked.temperature, seed, asked.stop)

        async with aclosing(server.worker.iterate(start)) as steps:
            async for step in steps:
                tokens += 1
                if text := cutter.push(step):
                    yield Piece(choice, text)
                if cutter.stopped or tokens >= asked.max_tokens:
                    break
        finish = "length" if tokens >= asked.max_tokens and not cutter.stopped else "stop"
        yield Piece(choice, cutter.flush(), tokens, finish)


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _delta(piece: Piece, first: bool, chat: bool) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": piece.choice, "logprobs": None, "finish_reason": piece.finish}
    if not chat:
        return choice | {"text": piece.text}
    delta: dict[str, str] = {"role": "assistant"} if first else {}
    if piece.text or first:
        delta["content"] = piece.text
    return choice | {"delta": delta}


class Routes:
    """The handlers of `/v1/...` for one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._created = int(time.time())

    def _card(self) -> dict[str, Any]:
        return {"id": self._server.name, "object": "model", "created": self._created, "owned_by": "tangram"}

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != self._server.name:
            raise NotFoundError(f"model {request.match_info['model']!r} is not served here")
        return web.json_response(self._card())

    async def _read(self, request: web.Request) -> tuple[Mapping[str, Any], Model]:
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"the request is not valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise BadRequestError("the request is not a JSON object")
        name = body.get("model")
        if not isinstance(name, str):
            raise BadRequestError(f"model: {name!r} is not the name of a model")
        return body, self._server.model(name)

    async def embeddings(self, request: web.Request) -> web.Response:
        body, model = await self._read(request)
        texts = _strings(body.get("input"), "input")
        if not texts:
            raise BadRequestError("input: is empty; give at least one text")
        form = body.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise BadRequestError(f"encoding_format: {form!r} is not float or base64")
        rows = np.asarray(await self._server.worker.call(model.embed, texts), "<f4")
        if body.get("dimensions") not in (None, rows.shape[1]):
            raise BadRequestError(
                f"dimensions: {body['dimensions']!r} is not what this model makes; it is {rows.shape[1]}"
            )
        vectors = rows.tolist() if form == "float" else [base64.b64encode(row.tobytes()).decode() for row in rows]
        tokens = sum(map(model.count_tokens, texts))
        return web.json_response(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)],
                "model": self._server.name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body, model = await self._read(request)
        asked = parse_generation(body, model, chat=chat)
        prompt_tokens = sum(map(model.count_tokens, asked.prompts))
        async with aclosing(generate(self._server, model, asked)) as pieces:
            if asked.stream:
                return await self._stream(request, asked, pieces, prompt_tokens)
            return await self._whole(asked, pieces, prompt_tokens)

    def _frame(self, kind: str, chat: bool) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self._server.name,
        }

    async def _whole(self, asked: Generation, pieces: AsyncIterator[Piece], prompt_tokens: int) -> web.Response:
        texts = [""] * len(asked.prompts)
        finishes: list[str | None] = [None] * len(asked.prompts)
        tokens = 0
        async for piece in pieces:
            texts[piece.choice] += piece.text
            finishes[piece.choice] = piece.finish
            tokens += piece.tokens
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}),
                "logprobs": None,
                "finish_reason": finish,
            }
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        kind = "chat.completion" if asked.chat else "text_completion"
        frame = self._frame(kind, asked.chat)
        return web.json_response(frame | {"choices": choices, "usage": _usage(prompt_tokens, tokens)})

    async def _stream(
        self, request: web.Request, asked: Generation, pieces: AsyncIterator[Piece], prompt_tokens: int
    ) -> web.StreamResponse:
        frame = self._frame("chat.completion.chunk" if asked.chat else "text_completion", asked.chat)
        # The first piece is drawn before the head is sent, so that a refusal still gets its own status.
        piece: Piece | None = await anext(pieces)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        tokens = 0
        begun = -1
        try:
            while piece is not None:
                choice = _delta(piece, piece.choice != begun, asked.chat)
                begun = piece.choice
                tokens += piece.tokens
                await response.write(_event(frame | {"choices": [choice]}))
                piece = await anext(pieces, None)
        except ConnectionError:
            raise
        except Exception as error:
            status, text = explain(error)
            _log.exception("%s %s failed after its head was sent", request.method, request.path)
            await response.write(b"data: " + error_body(request.path, status, text) + b"\n\n")
            return response
        if asked.include_usage:
            await response.write(_event(frame | {"choices": [], "usage": _usage(prompt_tokens, tokens)}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def add_routes(app: web.Application, server: Server) -> None:
    """Add `/v1/...` to an application."""
    routes = Routes(server)
    app.router.add_get("/v1/models", routes.models)
    app.router.add_get("/v1/models/{model}", routes.model)
    app.router.add_post("/v1/embeddings", routes.embeddings)
    app.router.add_post("/v1/completions", routes.completions)
    app.router.add_post("/v1/chat/completions", routes.chat_completions)
