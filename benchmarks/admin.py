"""The admin API of a running Tangram, found by its state directory. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

_TIMEOUT_S: Final = 3.0


class AdminError(Exception):
    """The admin API could not be asked, or refused; the text says why."""


class Admin:
    """One Tangram: `gateway` and `admin` are URLs."""

    def __init__(self, state: Path) -> None:
        """Raises AdminError when nothing was started in this state directory."""
        try:
            endpoints = json.loads((state / "endpoints.json").read_text(encoding="utf-8"))
            self._token = (state / "admin.token").read_text(encoding="utf-8").strip()
            self.gateway: str = endpoints["gateway"].rstrip("/")
            self.admin: str = endpoints["admin"].rstrip("/")
            self.pid = int(endpoints["pid"])
        except (OSError, ValueError, KeyError) as error:
            raise AdminError(f"no Tangram has been started with the state directory {state}") from error

    def get(self, path: str) -> Any:
        """Parsed JSON of one resource; a listing has its rows under `items`."""
        return self._ask("GET", path)

    def send(self, method: str, path: str, body: object = None) -> Any:
        """Change something; parsed JSON of the answer, None if it has no body."""
        return self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.admin}/api/v1alpha1{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            said = error.read(1000).decode(errors="replace")
            raise AdminError(f"{method} {path}: {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise AdminError(f"{method} {path}: {error}") from error
