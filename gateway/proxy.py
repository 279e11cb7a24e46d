"""A request from its head to the end of its answer: classify it, find its model, pass it on, record how it ended.

What the gateway answers by itself (health, lists of models, errors) is answered here; a request for a model goes on as
a `Passage`. Each request that names a model of the table is counted once when it arrives and once when it ends.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from random import Random
from time import monotonic
from typing import Final, cast

from aiohttp import web

from gateway import headers, heads, splitting
from gateway.body import REPLAY_BYTES, Body, TooLarge, TooSlow
from gateway.deadlines import BadTimeout, client_timeout
from gateway.engine import Engine
from gateway.exchange import BadTarget, ClientLeft, Connected, Exchange
from gateway.handover import Handover
from gateway.leases import Served
from gateway.meter import CLIENT_LEFT, Ending
from gateway.mirror import Copy, Mirror
from gateway.passage import Passage, Result
from gateway.protocols import Answer, Route, classify, multipart, oip, openai
from gateway.refusal import Refusal
from gateway.tenants import credential
from gateway.timeouts import Pace, Timeouts
from gateway.waiting import ANYONE, Claim

log = logging.getLogger("gateway.proxy")

_VERSION: Final = "0.1.0"
#: Answered to whoever asks, key or not.
_OPEN: Final = frozenset({Answer.LIVE, Answer.READY})


class _Rejected(Exception):
    """The request itself is at fault."""

    def __init__(self, status: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Proxy:
    """The full path. `closing` says that the worker is about to leave."""

    def __init__(self, engine: Engine, rng: Random, timeouts: Timeouts | None = None) -> None:
        self.engine = engine
        self.timeouts = timeouts or Timeouts()
        self.dispatcher = engine.dispatcher
        self.closing = False
        self._mirror = Mirror(engine)
        self._rng = rng

    def new_id(self) -> str:
        """A request id of our own."""
        return f"{self._rng.getrandbits(128):032x}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of a client."""
        begun = cast(Connected, request.protocol).take_over()
        request_id = begun.id if begun else headers.request_id(request.raw_headers) or self.new_id()
        arrival = begun.arrival if begun else monotonic()
        x = Exchange(request, request_id, arrival, closing=self.closing, stall_s=self.timeouts.stall_s)
        x.begun = begun
        try:
            fault = heads.inspect(
                request.method, request.version, request.raw_headers, target_bytes=len(request.raw_path)
            )
            if fault is not None:
                self.dispatcher.meter.unroute(fault.status)
                return x.refuse(fault.status, fault.message, fault.reason, close=True)
            if request.method == "OPTIONS" and request.raw_path == "*":
                return self._local(x, Route(Answer.SERVER, x.shape))
            try:
                target, host = x.origin_form()
            except BadTarget as error:
                self.dispatcher.meter.unroute(400)
                return x.refuse(400, str(error), "bad_target", close=True)
            route = classify(request.method, target)
            x.shape = route.shape
            refusal = self._identify(x, route)
            if refusal is not None:
                self.dispatcher.meter.unroute(refusal.status)
                return x.refuse(refusal.status, refusal.message, refusal.reason, close=refusal.status == 401)
            if route.answer is Answer.FORWARD or route.answer is Answer.BODY:
                return await self._forward(x, route, host)
            if route.answer is Answer.INDEX:
                return await self._index(x, route)
            return self._local(x, route)
        except ClientLeft:
            return x.abandon()
        finally:
            if x.begun is not None:
                self.forsake(x.begun, x.status or CLIENT_LEFT)

    def forsake(self, begun: Handover, code: int) -> None:
        """Nobody goes on with a request that the fast path began."""
        now = monotonic()
        if begun.permit is not None:
            self.dispatcher.tenants.release(begun.permit, code, now)
        if begun.counted is not None:
            ending = Ending.CANCELLED if code == CLIENT_LEFT else Ending.REJECTED
            begun.counted.meter.finish(ending, code, now - begun.arrival)

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
            names = [*dispatcher.names, *sorted(dispatcher.table.aliases)]
            document = openai.model_list(n for n in names if self._shows(x, n))
        elif route.answer in (Answer.DESCRIBE, Answer.MODEL_READY) and self._shows(x, route.model):
            if route.answer is Answer.DESCRIBE:
                document = openai.model_object(route.model)
            elif dispatcher.ready(route.model):
                document = {"name": route.model, "ready": True}
            else:
                # The protocol wants 4xx for "not ready"; 400 is what its first server gives.
                status, document = 400, route.shape(400, f"model {route.model!r} has no ready replica", "not_ready")
        elif route.answer is Answer.CONTROL:
            message = "this is for the owner of a server, which many share here; the gateway refuses it"
            status, document = 403, route.shape(403, message, "forbidden")
        elif route.answer is Answer.NOT_FOUND:
            status, document = 404, route.shape(404, "nothing is served at this path", "not_found")
        else:
            status, document = 404, self._unknown(route, route.model)
        dispatcher.meter.unroute(status)
        return x.answer(status, document)

    def _identify(self, x: Exchange, route: Route) -> Refusal | None:
        """Find out who asks and how long they wait; a refusal where either cannot be."""
        fields = x.request.raw_headers
        if route.answer not in _OPEN and self.dispatcher.tenants.asking:
            who = self.dispatcher.tenants.identify(credential(fields))
            if isinstance(who, Refusal):
                return who
            x.tenant = who
        try:
            told = client_timeout(fields)
        except BadTimeout as error:
            return Refusal(400, "bad_timeout", str(error))
        if told is not None:
            x.until = x.arrival + told
        return None

    def _shows(self, x: Exchange, name: str) -> bool:
        """Whether there is such a model for who asks."""
        served = self.dispatcher.find(name)
        return served is not None and (x.tenant is None or x.tenant.may_use(served.meter.name))

    def _unknown(self, route: Route, name: str) -> dict[str, object]:
        return route.shape(404, f"model {name[:100]!r} is not known here", "unknown")

    async def _forward(self, x: Exchange, route: Route, host: str) -> web.StreamResponse:
        named = splitting.Named(route.model)
        body = Body(x.request.content, Pace(self.timeouts), keep=False)
        if route.answer is Answer.BODY:
            try:
                named = await self._model_in(x, body)
            except _Rejected as error:
                self.dispatcher.meter.unroute(error.status)
                return x.refuse(error.status, str(error), error.reason, close=error.status in (408, 413))
            except (ClientLeft, asyncio.CancelledError):
                self.dispatcher.meter.unroute(CLIENT_LEFT)
                raise
        served = self.dispatcher.find(named.name)
        if served is None:
            self.dispatcher.meter.unroute(404)
            return x.answer(404, self._unknown(route, named.name))
        x.model = served.meter.name
        key = _sticky_key(x, served)
        begun, x.begun = x.begun, None
        claim, held, result = ANYONE, begun.permit if begun is not None else None, Result()
        if x.tenant is not None:
            answer = held or self.dispatcher.tenants.admit(x.tenant, served.meter.name, x.arrival)
            if isinstance(answer, Refusal):
                served.meter.finish(Ending.REFUSED, answer.status, 0.0, answer.reason)
                return x.refuse(answer.status, answer.message, answer.reason, retry_after_s=answer.retry_after_s)
            claim, held = x.tenant.claim, answer
        if key:
            claim = replace(claim, key=key)
        try:
            return await self._pass_on(x, route, host, body, named, served, claim, result, begun)
        finally:
            if held is not None:
                self.dispatcher.tenants.release(held, result.code, monotonic())

    async def _pass_on(
        self,
        x: Exchange,
        route: Route,
        host: str,
        body: Body,
        named: splitting.Named,
        asked: Served,
        claim: Claim,
        result: Result,
        begun: Handover | None,
    ) -> web.StreamResponse:
        served = self.dispatcher.choose_version(asked, claim.key)
        renamed = served.route.entry.rename_aliases and named.name != served.meter.name
        if served is not asked or renamed:
            x.model = served.meter.name
            route = replace(route, target=splitting.target_of(route.target, x.model))
            if route.answer is Answer.BODY:
                named.rename(body, x.model)
        if begun is None or begun.counted is None:
            served.meter.arrivals += 1
        mirror = "" if x.websocket else self._mirror_of(asked)
        entry = served.route.entry
        safe = route.repeatable or entry.retry_all_methods
        body.keep = bool(mirror) or (safe and (entry.retry_attempts > 0 or entry.hedge is not None))
        passage = Passage(self.engine, x, route, host, body, served, safe=safe, claim=claim)
        if begun is not None:
            passage.go_on(begun)
        try:
            return await passage.run(result)
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
            if mirror and result.ending is Ending.COMPLETED:
                self._copy(x, route, body, named, passage, asked.meter.name, mirror)

    def _copy(
        self, x: Exchange, route: Route, body: Body, named: splitting.Named, passage: Passage, name: str, mirror: str
    ) -> None:
        """Send the mirror its copy, if all of the body is at hand."""
        whole = body.whole() if body.rewindable else None
        if whole is None or len(whole) > REPLAY_BYTES:
            self._mirror.drop(mirror)
            return
        if route.answer is Answer.BODY:
            whole = named.renamed(whole, mirror)
        target = splitting.target_of(route.target, mirror)
        fields = passage.outgoing.fields()
        copy = Copy(x.request.method, target, fields, whole, name, x.peer, x.request.scheme, x.id)
        self._mirror.send(copy, mirror)

    def _mirror_of(self, served: Served) -> str:
        """The model that gets a copy of this request; empty where none does."""
        entry = served.route.entry
        if not entry.mirror or 100 * self._rng.random() >= entry.mirror_percent:
            return ""
        return entry.mirror

    async def _index(self, x: Exchange, route: Route) -> web.StreamResponse:
        x.proceed()
        try:
            asked = await Body(x.request.content, Pace(self.timeouts), keep=False).read_all(oip.MAX_INDEX_BODY)
            ready_only = oip.wants_ready_only(asked)
        except TooLarge:
            status, message, reason = 413, "the body is too large for an index request", "too_large"
        except TooSlow as error:
            status, message, reason = 408, str(error), "request_timeout"
        except (ValueError, web.RequestPayloadError) as error:
            status, message, reason = 400, f"the body is no index request: {error}", "bad_body"
        except ConnectionError:
            raise ClientLeft from None
        else:
            self.dispatcher.meter.unroute(200)
            states = [state for state in self.dispatcher.states() if self._shows(x, state[0])]
            return x.answer(200, oip.index(states, ready_only=ready_only))
        self.dispatcher.meter.unroute(status)
        return x.refuse(status, message, reason, close=status != 400)

    async def _model_in(self, x: Exchange, body: Body) -> splitting.Named:
        given = x.request.headers.get("Content-Type", "application/json")
        kind = given.partition(";")[0].strip().lower()
        if kind.startswith("multipart/") and kind != "multipart/form-data":
            raise _Rejected(
                415, f"a body of type {kind} names no model here; send JSON or a form", "unsupported_media_type"
            )
        if x.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Rejected(
                415, "a body with a Content-Encoding names no model here; send it plain", "unsupported_media_type"
            )
        too_large = _Rejected(
            413, f"no model was found in the first {openai.MAX_BODY} bytes of the body; send it first", "too_large"
        )
        try:
            if kind == "multipart/form-data":
                finder = multipart.FieldFinder(given, "model")
                x.proceed()
                name = await body.read_until(finder.feed, openai.MAX_BODY)
                if name is None:
                    raise multipart.BadForm("the form ends before its last delimiter")
                return splitting.Named(name, finder.span)
            length = x.request.content_length
            if length is not None and length > openai.MAX_BODY:
                raise too_large
            x.proceed()
            return splitting.Named(openai.model_of(await body.read_all(openai.MAX_BODY)))
        except TooLarge:
            raise too_large from None
        except TooSlow as error:
            raise _Rejected(408, str(error), "request_timeout") from None
        except (openai.BadBody, multipart.BadForm) as error:
            raise _Rejected(400, str(error), "bad_body") from None
        except web.RequestPayloadError as error:
            raise _Rejected(400, f"the body is malformed: {error}", "bad_body") from None
        except ConnectionError:
            raise ClientLeft from None


def _sticky_key(x: Exchange, served: Served) -> str:
    header = served.route.entry.sticky_header
    return x.request.headers.get(header, "") if header else ""
