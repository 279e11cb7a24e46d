"""What a protocol makes of a request: a `Route`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

#: (status, message, reason) -> JSON-able body.
ErrorShape = Callable[[int, str, str], dict[str, object]]


class Answer(Enum):
    """Who answers a request."""

    FORWARD = auto()
    BODY = auto()
    """A replica of the model that the body names."""
    SERVER = auto()
    LIVE = auto()
    READY = auto()
    MODEL_READY = auto()
    LIST = auto()
    DESCRIBE = auto()
    NOT_FOUND = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """Where one request goes."""

    answer: Answer
    shape: ErrorShape
    model: str = ""
    target: str = ""
    """What a replica is asked for: path and query."""
    repeatable: bool = False
    """Whether the protocol calls it safe to send twice."""
    wakes: bool = True
    """Whether it starts a replica of a model that has none."""


def plain_error(status: int, message: str, reason: str) -> dict[str, object]:
    """Where no protocol says how an error looks."""
    return {"error": message}


#: Methods that are safe to repeat in every protocol.
SAFE: Final = frozenset({"GET", "HEAD"})
