"""A request from its head to the end of its answer: classify it, find its model, pass it on, record how it ended.

What the gateway answers by itself (health, lists of models, errors) is answered here; a request for a model goes on as
a `Passage`. Each request that names a model of the table is counted once when it arrives and once when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random
from time import monotonic
from typing import Final

from aiohttp import web

from gateway import headers
from gateway.body import Body, TooLarge
from gateway.engine import Engine
from gateway.exchange import CLIENT_STALL_S, BadTarget, ClientLeft, Exchange
from gateway.meter import CLIENT_LEFT, Ending
from gateway.passage import Passage, Result
from gateway.protocols import Answer, Route, classify, openai

log = logging.getLogger("gateway.proxy")

_VERSION: Final = "0.1.0"


class _Rejected(Exception):
    """The request itself is at fault."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Proxy:
    """The full path. `closing` says that the worker is about to leave."""

    def __init__(self, engine: Engine, rng: Random) -> None:
        self.engine = engine
        self.dispatcher = engine.dispatcher
        self.closing = False
        self._rng = rng

    def new_id(self) -> str:
        """A request id of our own."""
        return f"{self._rng.getrandbits(128):032x}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of a client."""
        request_id = headers.request_id(request.raw_headers) or self.new_id()
        x = Exchange(request, request_id, monotonic(), closing=self.closing)
        try:
            try:
                target, host = x.origin_form()
            except BadTarget as error:
                self.dispatcher.meter.unroute(400)
                return x.refuse(400, str(error), "bad_target", close=True)
            route = classify(request.method, target)
            x.shape = route.shape
            if route.answer is Answer.FORWARD or route.answer is Answer.BODY:
                return await self._forward(x, route, host)
            return self._local(x, route)
        except ClientLeft:
            return x.cut()

    def _local(self, x: Exchange, route: Route) -> web.StreamResponse:
        dispatcher = self.dispatcher
        status = 200
        document: object
        if route.answer is Answer.SERVER:
            document = {"name": "tangram", "version": _VERSION, "extensions": ["binary_tensor_data"]}
        elif route.answer is Answer.LIVE:
            document = {"live": True}
        elif route.answer is Answer.READY:
            ready = dispatcher.version != (0, 0) and not self.closing
            status, document = (200 if ready else 503), {"ready": ready}
        elif route.answer is Answer.LIST:
            document = openai.model_list(dispatcher.names)
        elif route.answer in (Answer.DESCRIBE, Answer.MODEL_READY) and dispatcher.find(route.model) is not None:
            if route.answer is Answer.DESCRIBE:
                document = openai.model_object(route.model)
            elif dispatcher.ready(route.model):
                document = {"name": route.model, "ready": True}
            else:
                # The protocol wants 4xx for "not ready"; 400 is what its first server gives.
                status, document = 400, route.shape(400, f"model {route.model!r} has no ready replica", "not_ready")
        elif route.answer is Answer.NOT_FOUND:
            status, document = 404, route.shape(404, "nothing is served at this path", "not_found")
        else:
            status, document = 404, self._unknown(route, route.model)
        dispatcher.meter.unroute(status)
        return x.answer(status, document)

    def _unknown(self, route: Route, name: str) -> dict[str, object]:
        return route.shape(404, f"model {name[:100]!r} is not known here", "unknown")

    async def _forward(self, x: Exchange, route: Route, host: str) -> web.StreamResponse:
        name = route.model
        body = Body(x.request.content, keep=False)
        if route.answer is Answer.BODY:
            try:
                name = await self._model_in(x, body)
            except _Rejected as error:
                self.dispatcher.meter.unroute(error.status)
                return x.refuse(error.status, str(error), error.reason, close=error.status in (408, 413))
            except (ClientLeft, asyncio.CancelledError):
                self.dispatcher.meter.unroute(CLIENT_LEFT)
                raise
        served = self.dispatcher.find(name)
        if served is None:
            self.dispatcher.meter.unroute(404)
            return x.answer(404, self._unknown(route, name))
        x.model = served.meter.name
        served.meter.arrivals += 1
        entry = served.route.entry
        repeatable = entry.retry_attempts > 0 and (route.repeatable or entry.retry_all_methods)
        if route.answer is Answer.FORWARD:
            body = Body(x.request.content, keep=repeatable)
        result = Result()
        try:
            return await Passage(self.engine, x, route, host, body, served, repeatable=repeatable).run(result)
        except ClientLeft:
            result.end(Ending.CANCELLED, CLIENT_LEFT)
            raise
        except Exception:
            result.end(Ending.FAILED, 500)
            log.exception("a request failed within the gateway", extra=x.about())
            if x.status:
                return x.cut()
            return x.refuse(500, "the gateway failed; its log says more", "internal", close=True)
        finally:
            served.meter.finish(result.ending, result.code, monotonic() - x.arrival, result.reason)

    async def _model_in(self, x: Exchange, body: Body) -> str:
        kind = x.request.headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
        if kind.startswith("multipart/"):
            raise _Rejected(415, f"a body of type {kind} names no model here; send JSON", "unsupported_media_type")
        too_large = _Rejected(
            413, f"the body is larger than {openai.MAX_BODY} bytes; the gateway reads it whole", "too_large"
        )
        length = x.request.content_length
        if length is not None and length > openai.MAX_BODY:
            raise too_large
        x.proceed()
        try:
            return openai.model_of(await body.read_all(openai.MAX_BODY, CLIENT_STALL_S))
        except TooLarge:
            raise too_large from None
        except TimeoutError:
            raise _Rejected(408, "the body did not come in time", "request_timeout") from None
        except openai.BadBody as error:
            raise _Rejected(400, str(error), "bad_body") from None
        except web.RequestPayloadError as error:
            raise _Rejected(400, f"the body is malformed: {error}", "bad_body") from None
        except ConnectionError:
            raise ClientLeft from None
