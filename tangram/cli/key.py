"""`tangram key`: make, list and revoke the API keys of tenants."""

from __future__ import annotations

import secrets
import time

from tangram.cli.client import Client, segment
from tangram.control.views import KeyView, NewKeyView
from tangram.core import keys


def create(client: Client, tenant: str) -> NewKeyView:
    """A new key; shown this once."""
    return NewKeyView.model_validate(client.post(f"/tenants/{segment(tenant)}/keys", {}))


def listed(client: Client, tenant: str | None) -> list[KeyView]:
    """Keys of one tenant or of all, without their secrets."""
    found = [KeyView.model_validate(k) for k in client.get("/keys")["items"]]
    return [k for k in found if tenant is None or k.tenant == tenant]


def revoke(client: Client, id: str) -> None:
    """Make a key void."""
    client.delete(f"/keys/{segment(id)}")


def generate() -> tuple[str, str]:
    """(a key, the entry of a Tenant's `spec.keys` for it), made here and stored nowhere."""
    id, secret = secrets.token_hex(keys.ID_BYTES), secrets.token_urlsafe(keys.SECRET_BYTES)
    key, stored = keys.make("", id, secret, time.time())
    return key, f"- {{id: '{stored.id}', sha256: {stored.sha256}}}"


def table(found: list[KeyView]) -> str:
    """A line a key."""
    lines = ["ID        TENANT                CREATED"]
    for key in found:
        made = (
            "by its document"
            if key.created_at is None
            else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(key.created_at))
        )
        lines.append(f"{key.id:<9} {key.tenant:<21} {made}")
    return "\n".join(lines)
