"""The HTTP server: Open Inference Protocol routes, readiness, and an orderly end.

It listens first and loads the model afterwards, in the model's thread: a probe gets an answer (503) from the first
moment, and ready means that the next request is served. On SIGTERM it stops listening, closes idle connections,
finishes what is in flight and returns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from tangram.node.runtimes.embedded import openai
from tangram.node.runtimes.embedded.api import BadRequestError, Model, Tensor
from tangram.node.runtimes.embedded.budget import CoresFile
from tangram.node.runtimes.embedded.errors import NotFoundError, NotReadyError, answer_errors
from tangram.node.runtimes.embedded.loader import LoadError, load_class
from tangram.node.runtimes.embedded.tensors import InferResponse, decode_request, encode_response
from tangram.node.runtimes.embedded.worker import Worker

_log = logging.getLogger("tangram.embedded")

MAX_BODY_BYTES: Final = 256 * 1024 * 1024
#: Longer than any drain: whoever sent SIGTERM decides when patience ends.
_FINISH_SECONDS: Final = 300.0
_HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "model_configuration")
_PLATFORM: Final = "tangram_embedded"


class Server:
    """Serves one model under one name."""

    def __init__(self, name: str, worker: Worker) -> None:
        self.name = name
        self.worker = worker
        self._model: Model | None = None

    def install(self, model: Model) -> None:
        """The model has been loaded: from now on the server is ready."""
        self._model = model
        self.worker.start_budget()

    def model(self, name: str, version: str | None = None) -> Model:
        """The model, if that is the one asked for and it is loaded."""
        if name != self.name:
            raise NotFoundError(f"model {name!r} is not served here; this server has {self.name!r}")
        if self._model is None:
            raise NotReadyError(f"model {name!r} is loading")
        if version not in (None, self._model.version):
            raise NotFoundError(f"model {name!r} has no version {version!r}; it has {self._model.version!r}")
        return self._model

    def app(self) -> web.Application:
        """The aiohttp application with all routes."""
        app = web.Application(middlewares=[answer_errors], client_max_size=MAX_BODY_BYTES)
        add = app.router
        add.add_get("/v2", self._server_metadata)
        add.add_get("/v2/health/live", self._live)
        add.add_get("/v2/health/ready", self._ready)
        add.add_post("/v2/repository/index", self._index)
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            add.add_get(path, self._metadata)
            add.add_get(path + "/ready", self._model_ready)
            add.add_get(path + "/config", self._config)
            add.add_post(path + "/infer", self._infer)
        openai.add_routes(app, self)
        return app

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready = self._model is not None
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _server_metadata(self, request: web.Request) -> web.Response:
        # Imported here because it costs 20 ms, which every start of a replica would pay.
        from importlib import metadata

        version = metadata.version("tangram-serving")
        return web.json_response({"name": "tangram-embedded", "version": version, "extensions": _EXTENSIONS})

    async def _index(self, request: web.Request) -> web.Response:
        ready = self._model is not None
        body = await request.read()
        document = json.loads(body) if body else {}
        if not isinstance(document, dict):
            raise BadRequestError("the request is not a JSON object")
        if document.get("ready") is True and not ready:
            return web.json_response([])
        entry = {"name": self.name, "state": "READY" if ready else "LOADING", "reason": ""}
        return web.json_response([entry | ({"version": self._model.version} if self._model else {})])

    def _asked(self, request: web.Request) -> Model:
        return self.model(request.match_info["model"], request.match_info.get("version"))

    async def _metadata(self, request: web.Request) -> web.Response:
        model = self._asked(request)
        return web.json_response(
            {
                "name": self.name,
                "versions": [model.version],
                "platform": _PLATFORM,
                "inputs": [_tensor_metadata(spec) for spec in model.inputs],
                "outputs": [_tensor_metadata(spec) for spec in model.outputs],
            }
        )

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._asked(request)
        return web.json_response({"name": self.name, "ready": True})

    async def _config(self, request: web.Request) -> web.Response:
        model = self._asked(request)
        return web.json_response(
            {
                "name": self.name,
                "platform": _PLATFORM,
                "backend": "python",
                "max_batch_size": 0,
                "input": [_tensor_config(spec) | {"optional": spec.optional} for spec in model.inputs],
                "output": [_tensor_config(spec) for spec in model.outputs],
            }
        )

    async def _infer(self, request: web.Request) -> web.Response:
        model = self._asked(request)
        length = request.headers.get(_HEADER_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit()):
            raise BadRequestError(f"{_HEADER_LENGTH}: {length!r} is not a number of bytes")
        body = await request.read()
        answer = await self.worker.call(self._predict, model, body, None if length is None else int(length))
        if answer.header_length is None:
            return web.Response(body=answer.body, content_type="application/json")
        return web.Response(
            body=answer.body,
            content_type="application/octet-stream",
            headers={_HEADER_LENGTH: str(answer.header_length)},
        )

    def _predict(self, model: Model, body: bytes, header_length: int | None) -> InferResponse:
        request = decode_request(body, header_length, model.inputs, model.outputs)
        results = model.predict(request.inputs)
        return encode_response(request, results, model.outputs, model=self.name, version=model.version)


def _tensor_metadata(spec: Tensor) -> Mapping[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_config(spec: Tensor) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape)}


def _load(path: Path) -> Model:
    model = load_class(path)()
    model.load()
    return model


async def _serve(path: Path, name: str, host: str, port: int, cores: float | None, file: CoresFile | None) -> int:
    began = time.monotonic()
    server = Server(name, Worker(cores, file))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=_FINISH_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
    except OSError as error:
        _log.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        await runner.cleanup()
        return 2
    address = runner.addresses[0]
    _log.info("listening on http://%s:%d", address[0], address[1])

    stopping = asyncio.ensure_future(stop.wait())
    loading = asyncio.ensure_future(server.worker.call(_load, path))
    await asyncio.wait((stopping, loading), return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        try:
            server.install(loading.result())
        except LoadError as error:
            _log.error("%s", error)
            return 1
        except Exception:
            _log.exception("%s: the model cannot be loaded", path)
            return 1
        budget = "unbounded CPU" if cores is None else f"{cores:g} cores"
        _log.info("model %s is ready after %.3f s, %s", name, time.monotonic() - began, budget)
        await stopping
    else:
        loading.cancel()
    _log.info("stopping: finishing what is in flight")
    await runner.cleanup()
    return 0


def serve(path: Path, name: str, host: str, port: int, cores: float | None, file: CoresFile | None = None) -> int:
    """Serve a model file until SIGTERM or SIGINT; the process' exit code."""
    return asyncio.run(_serve(path, name, host, port, cores, file))
