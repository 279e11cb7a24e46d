"""Weighted versions: requests for one public name that go to several models by percent, the rest to the model itself.

Chance decides for each request, or the request's key where the model is sticky: the same key takes the same side as
long as the percents do not change, and a growing percent only moves keys towards the version that grows.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

from gateway.wire import ModelEntry

_PREFIX: Final = "/v2/models/"


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
    """A target of the Open Inference Protocol that names this model instead; others as they are."""
    if not target.startswith(_PREFIX):
        return target
    path, mark, query = target.partition("?")
    _, slash, rest = path.removeprefix(_PREFIX).partition("/")
    return _PREFIX + quote(model, safe="") + slash + rest + mark + query


def body_of(body: bytes, model: str) -> bytes:
    """A JSON object that names this model instead."""
    document = json.loads(body)
    document["model"] = model
    return json.dumps(document, separators=(",", ":")).encode()
