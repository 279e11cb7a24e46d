"""Weighted versions: requests for one public name that go to several models by percent, the rest to the model itself.

Chance decides for each request, or the request's key where the model is sticky: the same key takes the same side as
long as the percents do not change, and a growing percent only moves keys towards the version that grows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol
from urllib.parse import quote, unquote_plus

from gateway.wire import ModelEntry

_PREFIX: Final = "/v2/models/"
_REALTIME: Final = "/v1/realtime"


class Body(Protocol):
    """A body that is read whole, or as far as the model's name."""

    def whole(self) -> bytes | None:
        """All of it, if it is here."""

    def replace(self, whole: bytes) -> None:
        """Another in its place."""

    def splice(self, begins: int, ends: int, data: bytes) -> None:
        """Other bytes in the place of some."""


@dataclass(slots=True)
class Named:
    """The model that a request names, and where in its body."""

    name: str
    span: tuple[int, int] | None = None
    """First byte, and first byte after, in a form; None: a key of a JSON object."""

    def rename(self, body: Body, model: str) -> None:
        """Make the body name this model instead; what of a form is still to come stays as it is."""
        if self.span is None:
            body.replace(body_of(body.whole() or b"", model))
        else:
            body.splice(*self.span, model.encode())
            self.span = self.span[0], self.span[0] + len(model.encode())

    def renamed(self, whole: bytes, model: str) -> bytes:
        """A copy of the whole body that names this model instead."""
        if self.span is None:
            return body_of(whole, model)
        begins, ends = self.span
        return whole[:begins] + model.encode() + whole[ends:]


def point(key: str, salt: str) -> float:
    """A number in [0, 1) that is the same for the same key and salt, and as good as random otherwise."""
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8, key=blake2b(salt.encode()).digest()[:32])
    return int.from_bytes(digest.digest(), "big") / 2**64


def version(entry: ModelEntry, at: float) -> str:
    """The model that the request at this point of [0, 1) goes to."""
    for target in entry.split:
        at -= target.percent / 100
        if at < 0:
            return target.model
    return entry.name


def target_of(target: str, model: str) -> str:
    """A target that names this model instead, where the protocol has it there; others as they are."""
    path, mark, query = target.partition("?")
    if path == _REALTIME:
        pairs = [pair.partition("=") for pair in query.split("&")]
        fields = (f"model={quote(model, safe='')}" if unquote_plus(k) == "model" else k + e + v for k, e, v in pairs)
        return path + mark + "&".join(fields)
    if not target.startswith(_PREFIX):
        return target
    _, slash, rest = path.removeprefix(_PREFIX).partition("/")
    return _PREFIX + quote(model, safe="") + slash + rest + mark + query


def body_of(body: bytes, model: str) -> bytes:
    """A JSON object that names this model instead."""
    document = json.loads(body)
    document["model"] = model
    return json.dumps(document, separators=(",", ":")).encode()
