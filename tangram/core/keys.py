"""API keys of tenants: `tgm_<id>_<secret>`, of which only the id and a SHA-256 of the whole are ever stored.

The secret has 256 random bits, so its digest cannot be searched for the key; a slow password hash would add nothing
but work for each request.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from gateway.tenants import KEY_PREFIX

ID_BYTES: Final = 4
SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key on record. Times are Unix seconds."""

    id: str
    tenant: str
    sha256: str
    created_at: float


def make(tenant: str, id: str, secret: str, now: float) -> tuple[str, Key]:
    """(the key to hand out, what is stored of it). `id` is hex, `secret` URL-safe text of enough random bytes."""
    key = f"{KEY_PREFIX}_{id}_{secret}"
    return key, Key(id, tenant, hashlib.sha256(key.encode("ascii")).hexdigest(), now)
