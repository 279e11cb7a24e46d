"""How long a client waits, by its own account.

`X-Request-Timeout` takes a number of seconds, or one with a unit: 250ms, 1.5s, 2m. `grpc-timeout` is as in gRPC: up to
eight digits and one of H, M, S, m, u, n. Where both are there the shorter one holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_PLAIN: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|)")
_GRPC: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0}
_GRPC_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class BadTimeout(ValueError):
    """A timeout that cannot be understood."""


def client_timeout(fields: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds that the client waits; None where it does not say. Raises BadTimeout."""
    told: list[float] = []
    for name, value in fields:
        if len(name) not in (12, 17):
            continue
        lower = name.lower()
        if lower == b"x-request-timeout":
            told.append(_seconds("X-Request-Timeout", value, _PLAIN, _UNITS, "2.5, 2.5s or 250ms"))
        elif lower == b"grpc-timeout":
            told.append(_seconds("grpc-timeout", value, _GRPC, _GRPC_UNITS, "250m or 2S"))
    return min(told, default=None)


def _seconds(name: str, value: bytes, form: re.Pattern[str], units: dict[str, float], example: str) -> float:
    match = form.fullmatch(value.decode("latin-1").strip())
    if match is None or not float(match[1]):
        raise BadTimeout(f"{name}: {value[:40]!r} is not a time above 0; write for example {example}")
    return float(match[1]) * units[match[2]]
