"""The admin REST API: an aiohttp application over the `Facade`, with its routes from `openapi.OPERATIONS`.

Each request passes `outermost` (which turns whatever goes wrong into an `ErrorView`), then the guard, then its handler.
Handlers take what the operation declares, checked, and return a view; none of them knows how an answer is written.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp import web
from pydantic import BaseModel, ValidationError

from tangram.control import openapi
from tangram.control.facade import Facade, NotFound, NotRecorded
from tangram.control.openapi import OPERATIONS, BadParameter, Operation
from tangram.control.security import MAX_BODY, Guard
from tangram.control.views import ApplyRequest, ErrorView, ScaleRequest
from tangram.node import logs
from tangram.spec import SpecError, explain_validation

_log: Final = logging.getLogger(__name__)

_SCRAPE_TIMEOUT_S: Final = 2.0
_FOLLOW_CHECK_S: Final = 0.5
_JSON: Final = "application/json"
#: Characters of a problem's text at most: it may quote what was sent.
_PROBLEM_LENGTH: Final = 500

View = TypeVar("View", bound=BaseModel)
Query = Mapping[str, Any]
Handler = Callable[[web.Request, Query], Awaitable[web.StreamResponse]]


class NotAcceptable(Exception):
    """A request that is refused with a status and a text of ours."""

    def __init__(self, status: int, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.details = tuple(details)


def make_app(facade: Facade, token: str, allowed_hosts: Iterable[str] = ()) -> web.Application:
    """The admin API. `allowed_hosts` are the addresses it is bound to; loopback's own are always allowed."""
    guard = Guard(token, allowed_hosts)

    @web.middleware
    async def outermost(request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]) -> Any:
        try:
            refusal = guard.check(
                request.path,
                hosts=request.headers.getall("Host", []),
                authorization=request.headers.getall("Authorization", []),
                remote=request.remote,
            )
            if refusal is not None:
                return _error(refusal.status, refusal.message)
            return await handler(request)
        except NotAcceptable as error:
            return _error(error.status, str(error), error.details)
        except BadParameter as error:
            return _error(400, str(error))
        except NotFound as error:
            return _error(404, str(error.args[0]) if error.args else "not found")
        except NotRecorded as error:
            _log.error("%s", error)
            return _error(503, str(error))
        except SpecError as error:
            problems = [line[:_PROBLEM_LENGTH] for line in str(error).splitlines()]
            return _error(422, "not accepted; nothing was changed", problems)
        except web.HTTPException as error:
            return _http_error(request, error)
        except Exception:
            _log.exception("%s %s failed", request.method, request.rel_url.raw_path)
            if request.writer.output_size > 0:
                raise
            return _error(500, "the controller failed on this request; its log says how")

    app = web.Application(middlewares=[outermost], client_max_size=MAX_BODY)
    api = _Api(facade)
    app.on_shutdown.append(api.end_streams)
    for operation in OPERATIONS:
        app.router.add_route(
            operation.method,
            operation.path,
            _route(operation, getattr(api, _handler_name(operation.id))),
            expect_handler=_expect,
        )
    return app


def _handler_name(operation_id: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in operation_id.replace("API", "Api"))


def _route(operation: Operation, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        query = {p.name: p.read(request.query.getall(p.name, [])) for p in operation.query}
        return await handler(request, query)

    return answer


class _Api:
    """One method an operation, named after it."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self._document: bytes | None = None
        self._stopping = False

    async def get_status(self, request: web.Request, query: Query) -> web.Response:
        return _view(self._facade.status())

    async def list_models(self, request: web.Request, query: Query) -> web.Response:
        return _views(self._facade.models())

    async def get_model(self, request: web.Request, query: Query) -> web.Response:
        return _view(self._facade.model(_name(request, "model")))

    async def delete_model(self, request: web.Request, query: Query) -> web.Response:
        await self._facade.delete(_name(request, "model"))
        return web.Response(status=204)

    async def describe_model(self, request: web.Request, query: Query) -> web.Response:
        return _view(self._facade.describe(_name(request, "model")))

    async def explain_model(self, request: web.Request, query: Query) -> web.Response:
        return _view(self._facade.explain(_name(request, "model")))

    async def get_model_spec(self, request: web.Request, query: Query) -> web.Response:
        name = _name(request, "model")
        self._facade.model(name)
        for spec in self._facade.specs():
            if spec.name == name:
                return _view(spec)
        raise NotFound(f"model {name!r} is being removed")

    async def scale_model(self, request: web.Request, query: Query) -> web.Response:
        name = _name(request, "model")
        wanted = await _body(request, ScaleRequest)
        if not wanted.model_dump(exclude_none=True):
            raise NotAcceptable(422, "nothing to change; give one of replicas, targetQPS, minReplicas and maxReplicas")
        return _view(await self._facade.scale(name, wanted))

    async def apply(self, request: web.Request, query: Query) -> web.Response:
        wanted = await _body(request, ApplyRequest)
        return _view(await self._facade.apply(wanted.documents, dry_run=wanted.dry_run))

    async def list_replicas(self, request: web.Request, query: Query) -> web.Response:
        return _views(self._facade.replicas(query["model"]))

    async def list_devices(self, request: web.Request, query: Query) -> web.Response:
        return _views(self._facade.devices())

    async def list_decisions(self, request: web.Request, query: Query) -> web.Response:
        return _views(self._facade.decisions(query["model"], query["limit"]))

    async def list_events(self, request: web.Request, query: Query) -> web.Response:
        return _views(self._facade.events(query["model"], query["limit"]))

    async def get_replica_logs(self, request: web.Request, query: Query) -> web.StreamResponse:
        name = _name(request, "replica")
        path = self._facade.log_path(name)
        headers = {"X-Content-Type-Options": "nosniff"}
        if not query["follow"]:
            try:
                text = await asyncio.to_thread(logs.tail, path, query["tail"])
            except FileNotFoundError:
                raise NotFound(f"replica {name!r} has written no log yet") from None
            return web.Response(
                body=text.encode("utf-8", "replace"), content_type="text/plain", charset="utf-8", headers=headers
            )
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/plain"
        response.charset = "utf-8"
        await response.prepare(request)
        try:
            async for chunk in self._follow(request, name, logs.follow(path, query["tail"])):
                await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            _log.debug("reader of the log of %s left", name)
        return response

    async def _follow(self, request: web.Request, name: str, lines: AsyncIterator[bytes | str]) -> AsyncIterator[bytes]:
        # A quiet log must not keep a reader that left, outlive its replica or delay a stop: looked at while waiting.
        pending: asyncio.Future[bytes | str] | None = None
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(lines))
                gone = not any(r.name == name for r in self._facade.replicas())
                done, _ = await asyncio.wait({pending}, timeout=_FOLLOW_CHECK_S)
                if self._stopping or request.transport is None or request.transport.is_closing():
                    return
                if not done:
                    if gone:
                        return
                    continue
                try:
                    chunk = pending.result()
                except (StopAsyncIteration, FileNotFoundError):
                    return
                pending = None
                yield chunk if isinstance(chunk, bytes) else chunk.encode("utf-8", "replace")
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            if (close := getattr(lines, "aclose", None)) is not None:
                await close()

    async def end_streams(self, app: web.Application) -> None:
        """End what follows logs, so that a stop of the controller waits for no reader."""
        self._stopping = True

    async def get_open_api(self, request: web.Request, query: Query) -> web.Response:
        if self._document is None:
            self._document = json.dumps(openapi.document(self._facade.status().version)).encode()
        return web.Response(body=self._document, content_type=_JSON)

    async def get_health(self, request: web.Request, query: Query) -> web.Response:
        return web.Response(text="ok\n")

    async def get_readiness(self, request: web.Request, query: Query) -> web.Response:
        if self._facade.status().adopting:
            raise NotAcceptable(503, "still finding the replicas of the last controller")
        return web.Response(text="ok\n")

    async def get_metrics(self, request: web.Request, query: Query) -> web.Response:
        from tangram.control import metrics

        urls = self._facade.worker_metrics_urls()
        timeout = aiohttp.ClientTimeout(total=_SCRAPE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            pages = await asyncio.gather(*(_scrape(session, url) for _, url in urls))
        page = metrics.render(self._facade, {worker: text for (worker, _), text in zip(urls, pages, strict=True)})
        return web.Response(body=page.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def _scrape(session: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with session.get(url, headers={"Accept": "text/plain"}) as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError, ValueError) as error:
        _log.warning("no metrics from %s: %s", url, str(error) or type(error).__name__)
        return None


def _name(request: web.Request, noun: str) -> str:
    name = request.match_info["name"]
    if not openapi.is_name(name):
        raise NotFound(f"no {noun} can be named {name!r}; names are lower-case letters, digits and -")
    return name


async def _body(request: web.Request, kind: type[View]) -> View:
    if request.content_type != _JSON:
        given = request.headers.get("Content-Type")
        raise NotAcceptable(415, f"Content-Type: {given!r} is not {_JSON}; send a JSON body under that type")
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            if problem["type"] == "json_invalid":
                raise NotAcceptable(400, f"the body is not JSON: {problem['ctx']['error']}") from None
        lines = [line[:_PROBLEM_LENGTH] for line in explain_validation(error)]
        raise NotAcceptable(422, "not accepted; nothing was changed", lines) from None


async def _expect(request: web.Request) -> web.StreamResponse | None:
    # Before the guard has seen the request nothing is promised: the body is asked for only when it would be read.
    value = request.headers.get("Expect", "")
    if value.lower() != "100-continue":
        return _error(417, f"Expect: {value!r} is not known; leave it out or send 100-continue")
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None


def _view(view: BaseModel, status: int = 200) -> web.Response:
    return web.Response(body=view.model_dump_json(by_alias=True).encode(), status=status, content_type=_JSON)


def _views(views: Sequence[BaseModel]) -> web.Response:
    body = ",".join(view.model_dump_json(by_alias=True) for view in views)
    return web.Response(body=f'{{"items":[{body}]}}'.encode(), content_type=_JSON)


def _error(status: int, message: str, details: Sequence[str] = ()) -> web.Response:
    view = ErrorView(error=message, details=tuple(details))
    # json.dumps escapes what is not ASCII, so that no text from a request can fail to be written.
    response = web.Response(body=json.dumps(view.model_dump()).encode(), status=status, content_type=_JSON)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    path = request.rel_url.raw_path
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        response = _error(405, f"{request.method} is not possible on {path!r}; it takes {allowed}")
        response.headers["Allow"] = allowed
        return response
    if isinstance(error, web.HTTPNotFound):
        return _error(404, f"{path!r} is not a path of this API; /openapi.json lists them")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return _error(413, f"the body is larger than {MAX_BODY} bytes; send fewer documents at once")
    return _error(error.status, error.reason)
