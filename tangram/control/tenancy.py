"""Tenants, their keys and what they used, as the controller keeps them; a change goes to the gateway at once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence

from gateway import wire
from tangram.control import present
from tangram.control.facade import NotFound
from tangram.control.store import Store
from tangram.control.views import KeyView, NewKeyView, TenantView
from tangram.core import convert, keys
from tangram.core.usage import TenantUsage, UsageTracker
from tangram.spec import Fleet, SpecError, Tenant


class Tenancy:
    """`publish` sends the gateway's settings; `require_key` closes the gateway also while there is no key."""

    def __init__(self, store: Store, publish: Callable[[wire.Settings], None], *, require_key: bool) -> None:
        self._store = store
        self._publish = publish
        self._require_key = require_key
        self.tenants: dict[str, Tenant] = store.tenants()
        self.usage = UsageTracker(store.usage(), time.time())
        self._over: set[str] = set()

    def publish(self, fleet: Fleet | None) -> None:
        """Send what holds now."""
        stored = self._store.tenant_keys()
        self._publish(convert.settings(list(self.tenants.values()), stored, fleet, require_key=self.require_key))

    @property
    def require_key(self) -> bool:
        """Whether the gateway wants a key of everybody."""
        return self._require_key or bool(self.tenants)

    def views(self) -> Sequence[TenantView]:
        """By name."""
        stored = self._store.tenant_keys()
        totals = self.usage.totals()
        return [
            TenantView(
                name=name,
                priority=tenant.spec.priority,
                weight=tenant.spec.weight,
                models=tenant.spec.models,
                keys=len(tenant.spec.keys) + sum(k.tenant == name for k in stored),
                usage=present.tenant_usage(totals.get(name, TenantUsage())),
            )
            for name, tenant in sorted(self.tenants.items())
        ]

    def key_views(self) -> Sequence[KeyView]:
        """All keys, those that a document declares included; by tenant."""
        shown = [KeyView(id=k.id, tenant=k.tenant, created_at=k.created_at) for k in self._store.tenant_keys()]
        shown += [KeyView(id=k.id, tenant=t.name) for t in self.tenants.values() for k in t.spec.keys]
        return sorted(shown, key=lambda k: (k.tenant, k.created_at or 0.0, k.id))

    def create(self, tenant: str, now: float) -> NewKeyView:
        """Make a key; this is the only time it is seen. Raises NotFound."""
        self._tenant(tenant)
        taken = {k.id for k in self.key_views()}
        id = next(i for i in iter(lambda: secrets.token_hex(keys.ID_BYTES), "") if i not in taken)
        key, stored = keys.make(tenant, id, secrets.token_urlsafe(keys.SECRET_BYTES), now)
        self._store.put_key(stored)
        return NewKeyView(id=id, tenant=tenant, key=key, created_at=now)

    def revoke(self, id: str) -> None:
        """Make a key void. Raises NotFound, and SpecError for a key that a document declares."""
        for tenant in self.tenants.values():
            if any(k.id == id for k in tenant.spec.keys):
                raise SpecError(
                    f"key {id} is declared by Tenant {tenant.name}: remove it from spec.keys and apply that"
                )
        if not self._store.delete_key(id):
            raise NotFound(f"no key {id!r}; `tangram key list` shows all")

    def take(self, changed: Sequence[Tenant], removed: Sequence[str]) -> None:
        """Follow what has been recorded."""
        self.tenants = {n: t for n, t in self.tenants.items() if n not in removed} | {t.name: t for t in changed}
        self.usage.forget(removed)

    def keep(self, live: Iterable[str], now: float) -> None:
        """Record what was used since the last call; `live` are the epochs of workers that are there.

        Raises sqlite3.Error; then all of it is recorded next time.
        """
        self._over |= self.usage.settle(live, now)
        changed = {e: a for e, a in self.usage.changed().items() if e.tenant in self.tenants}
        if changed or self._over:
            self._store.put_usage(changed, self._over)
        self.usage.recorded()
        self._over.clear()

    def delete(self, name: str) -> None:
        """Remove a tenant and its keys. Raises NotFound."""
        self._tenant(name)
        self._store.delete_tenant(name)
        del self.tenants[name]
        self.usage.forget([name])

    def _tenant(self, name: str) -> Tenant:
        found = self.tenants.get(name)
        if found is None:
            raise NotFound(f"no tenant {name!r}; there are: {', '.join(sorted(self.tenants)) or 'none'}")
        return found
