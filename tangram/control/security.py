"""What closes the admin API: a token that only this user can read, a check of Host against DNS rebinding, JSON bodies.

The API can start commands, so it is closed from the first day, on loopback too: any web page a user opens could
otherwise post to 127.0.0.1. A page cannot read the token's file, cannot send `Authorization` or a JSON body to another
origin without being asked first (no CORS header is ever sent), and, having rebound its own name to a loopback address,
still sends that name as Host. An IP literal in Host cannot come of rebinding.

`Guard.check` is one synchronous decision on the head of a request.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOKEN_FILE: Final = "admin.token"
#: Bytes of a request's body at most.
MAX_BODY: Final = 4 * 1024 * 1024

_OPEN: Final = frozenset({"/healthz", "/readyz"})
_OPEN_TO_LOOPBACK: Final = frozenset({"/metrics"})
_PRIVATE: Final = 0o600
_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+)(?::(?P<port>[0-9]{1,5}))?")


class TokenError(Exception):
    """The token's file cannot be read or written; the text says why."""


def read_token(state_dir: Path) -> str | None:
    """The token of a state directory, None where there is none yet; TokenError where this user may not read it."""
    path = state_dir / TOKEN_FILE
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise TokenError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenError(f"{path}: is not a token; remove the file and start again") from error


def load_token(state_dir: Path) -> str:
    """The token of a state directory, made on first use.

    A token that others could have read (a mode wider than 0600) is replaced by a new one. Raises TokenError.
    """
    path = state_dir / TOKEN_FILE
    try:
        if not stat.S_IMODE(path.stat().st_mode) & 0o077 and (token := read_token(state_dir)):
            return token
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TokenError(f"{path}: cannot be read: {error.strerror}") from error
    token = secrets.token_urlsafe(32)
    partial = state_dir / f".{TOKEN_FILE}.{os.getpid()}"
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
        partial.replace(path)
    except OSError as error:
        raise TokenError(f"{path}: cannot be written: {error.strerror}") from error
    return token


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further."""

    status: int
    message: str


def is_loopback(address: str | None) -> bool:
    """Whether an IP address (of a peer, say) is this machine's own; names and None are not addresses."""
    ip = _ip(address or "")
    return ip is not None and ip.is_loopback


class Guard:
    """Who may ask what. `allowed_hosts` are the names and addresses that the API is bound to, without ports.

    A wildcard address among them (0.0.0.0 or ::) allows every IP literal, and still no name but the loopback's own.
    """

    def __init__(self, token: str, allowed_hosts: Iterable[str] = ()) -> None:
        if not token:
            raise ValueError("token is empty; make one with load_token")
        self._token = token.encode()
        self._names = {"localhost"}
        self._any_address = False
        for host in allowed_hosts:
            bare = host.strip("[]").lower()
            ip = _ip(bare)
            self._names.add(str(ip) if ip else bare.removesuffix("."))
            self._any_address = self._any_address or bool(ip and ip.is_unspecified)

    def check(
        self, path: str, *, hosts: Sequence[str], authorization: Sequence[str], remote: str | None
    ) -> Refusal | None:
        """None for a request that may go on. `hosts` and `authorization` are all values of those headers."""
        if len(hosts) != 1:
            return Refusal(400, f"Host: given {len(hosts)} times; give it once")
        if not self._host_allowed(hosts[0]):
            return Refusal(
                403,
                f"Host: {hosts[0]!r} is not an address of this API; ask it by the address it listens on, or localhost",
            )
        if path in _OPEN or (path in _OPEN_TO_LOOPBACK and is_loopback(remote)):
            return None
        if not authorization:
            return Refusal(
                401,
                f"Authorization: is missing; send 'Bearer TOKEN' with the token in {TOKEN_FILE} of the state directory",
            )
        scheme, _, given = authorization[0].partition(" ")
        if len(authorization) == 1 and scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        return Refusal(
            401, f"Authorization: not the bearer token of this API; it is in {TOKEN_FILE} of the state directory"
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def _host_allowed(self, value: str) -> bool:
        match = _AUTHORITY.fullmatch(value)
        if match is None:
            return False
        name = match["host"].strip("[]").lower()
        ip = _ip(name)
        if ip is None:
            return name.removesuffix(".") in self._names
        return ip.is_loopback or self._any_address or str(ip) in self._names


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
