"""The admin API as the commands ask it: found by the state directory, asked with the standard library's http.client.

Whatever goes wrong is a `CommandError`: one line for the person at the terminal, and the exit code that goes with it
(1: it cannot be done now or is not there; 2: what was asked for makes no sense).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from tangram.control.paths import StatePaths

API: Final = "/api/v1alpha1"
DEFAULT_STATE: Final = ".tangram"
_TIMEOUT_S: Final = 30.0


class CommandError(Exception):
    """What to tell the user, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class NotRunning(CommandError):
    """Nobody answers."""


class Missing(CommandError):
    """The API knows no such model or replica."""


def state_dir(given: Path | None) -> Path:
    """The state directory meant: the one given, else TANGRAM_STATE_DIR, else .tangram."""
    return given or Path(os.environ.get("TANGRAM_STATE_DIR") or DEFAULT_STATE)


class Client:
    """Asks one admin API. `admin` is host:port or a URL; without a token reads and writes are refused."""

    def __init__(self, admin: str, token: str | None) -> None:
        url = urlsplit(admin if "//" in admin else f"http://{admin}")
        try:
            port = url.port
        except ValueError:
            port = None
        if url.scheme != "http" or not url.hostname or port is None or url.path not in ("", "/"):
            raise CommandError(f"--admin: {admin!r} is not an address; write host:port, for example 127.0.0.1:8081", 2)
        self.url = f"http://{url.netloc}"
        self._host, self._port = url.hostname, port
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, **query: object) -> Any:
        """The answer to GET, as JSON; query parameters that are None are left out."""
        return self._ask("GET", _with_query(path, query))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to POST of a JSON body."""
        return self._ask("POST", path, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to PATCH of a JSON body."""
        return self._ask("PATCH", path, body)

    def delete(self, path: str) -> None:
        """DELETE."""
        self._ask("DELETE", path)

    def stream(self, path: str, **query: object) -> Iterator[bytes]:
        """The body of the answer to GET, in pieces as they come."""
        with self._answer("GET", _with_query(path, query), timeout_s=None) as answer:
            while piece := answer.read1(65536):
                yield piece

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._answer(method, path, body) as answer:
            content = answer.read()
        try:
            return json.loads(content) if content else None
        except ValueError:
            raise CommandError(f"what answers at {self.url} is not Tangram's admin API") from None

    @contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float | None = _TIMEOUT_S
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            payload = None if body is None else json.dumps(body).encode()
            headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
            connection.request(method, API + path, payload, headers)
            answer = connection.getresponse()
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            if answer.status >= 400:
                raise _refusal(answer.status, answer.read())
            yield answer
        except TimeoutError:
            raise NotRunning(f"the controller at {self.url} gave no answer for {_TIMEOUT_S:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise NotRunning(
                f"the controller at {self.url} does not answer ({reason or type(error).__name__}); "
                "is `tangram up` running?"
            ) from None
        finally:
            connection.close()


def connect(state: Path | None = None, admin: str | None = None) -> Client:
    """The client for the installation meant by options, environment and state directory, in this order."""
    paths = StatePaths(state_dir(state))
    admin = admin or os.environ.get("TANGRAM_ADMIN") or None
    token = os.environ.get("TANGRAM_TOKEN") or _token(paths)
    if admin is None:
        admin = read_endpoints(paths).get("admin")
    if not isinstance(admin, str):
        raise NotRunning(
            f"nothing runs on state directory {paths.root}; start it with `tangram up FILE`, or name it with --state"
        )
    return Client(admin, token)


def read_endpoints(paths: StatePaths) -> dict[str, Any]:
    """What the controller wrote of its addresses; empty where there is none."""
    try:
        found = json.loads(paths.endpoints.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise CommandError(f"{paths.endpoints}: cannot be read: {error.strerror}") from None
    return found if isinstance(found, dict) else {}


def reachable(url: str) -> str:
    """The URL with a wildcard address replaced by the loopback address that reaches it."""
    for wildcard, loopback in (("//0.0.0.0:", "//127.0.0.1:"), ("//[::]:", "//[::1]:")):
        url = url.replace(wildcard, loopback)
    return url


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="") or "-"


def can_listen(host: str, port: int) -> str | None:
    """Why nobody could listen there now; None if one could."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except (OSError, OverflowError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _token(paths: StatePaths) -> str | None:
    try:
        return paths.token.read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a token"
        raise CommandError(f"{paths.token}: cannot be read: {reason}") from None


def _with_query(path: str, query: Mapping[str, object]) -> str:
    given = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in query.items() if v is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _refusal(status: int, body: bytes) -> CommandError:
    try:
        told = json.loads(body)
        message, details = str(told["error"]), [str(d) for d in told.get("details", ())]
    except (ValueError, KeyError, TypeError, AttributeError):
        message, details = f"the controller answered {status}", []
    if status == 401:
        message += "; set TANGRAM_TOKEN, or name the state directory with --state"
    if status == 404:
        return Missing(message)
    return CommandError("\n".join(details or [message]), 2 if status in (400, 413, 415, 422) else 1)
