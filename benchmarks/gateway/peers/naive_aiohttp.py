"""A proxy as one writes it with aiohttp in an hour: `python naive_aiohttp.py PORT UPSTREAM_PORT...`. No access log."""

import itertools
import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, TCPConnector, web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length"}


def forwarded(headers):
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


async def handle(request: web.Request) -> web.StreamResponse:
    url = f"http://127.0.0.1:{next(request.app['upstreams'])}{request.path_qs}"
    body = await request.read()
    async with request.app["session"].request(
        request.method, url, headers=forwarded(request.headers), data=body
    ) as answer:
        response = web.StreamResponse(status=answer.status, headers=forwarded(answer.headers))
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for part in answer.content.iter_any():
            await response.write(part)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as made:
        app["session"] = made
        yield


def main() -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app["upstreams"] = itertools.cycle(sys.argv[2:])
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, backlog=4096)


if __name__ == "__main__":
    main()
