"""Clients that keep asking while something is killed, and count what failed."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

CLIENTS = 8
PAUSE_S = 0.02
REFUSED = ConnectionRefusedError.__name__
"""How a failure begins of which nothing reached the gateway: nobody listened."""


@dataclass
class Traffic:
    """Each client asks over one kept connection, one request at a time; a failed one is not repeated."""

    gateway: str
    model: str
    answered: int = 0
    failures: list[tuple[float, str]] = field(default_factory=list)
    """(monotonic time, what happened)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def failed_since(self, moment: float) -> list[str]:
        """What failed after a moment (monotonic)."""
        with self._lock:
            return [what for at, what in self.failures if at >= moment]

    def ask_once(self) -> bool:
        """Whether a request over a connection of its own is answered with 200."""
        connection = self._connect()
        try:
            return self._ask(connection) == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.gateway).netloc, timeout=10)

    def _ask(self, connection: http.client.HTTPConnection) -> int:
        connection.request("POST", f"/v2/models/{self.model}/infer", b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def _client(self) -> None:
        connection = self._connect()
        while not self._stop.is_set():
            what = ""
            try:
                status = self._ask(connection)
                if status != 200:
                    what = f"status {status}"
            except (OSError, http.client.HTTPException) as error:
                what = f"{type(error).__name__}: {error}"
            with self._lock:
                if what:
                    self.failures.append((time.monotonic(), what))
                else:
                    self.answered += 1
            if what:
                with contextlib.suppress(OSError):
                    connection.close()
                connection = self._connect()
            time.sleep(PAUSE_S)
        connection.close()
