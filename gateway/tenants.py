"""Tenants: who asks (by API key), what they may use, how much of it, and how much they used.

A key looks like `tgm_<id>_<secret>`. The table holds its id and the SHA-256 of the whole key, which is enough for a
secret of 256 random bits. The id finds the entry; what decides is a comparison of digests in constant time, made for
unknown ids too. Keys come and go with the table, so a new one works, and a revoked one ceases to, within a moment.

Limits hold for a tenant as a whole and for a tenant and model; a request must pass all that concern it. Requests a
second (a token bucket) and concurrency are counted over all workers, in the shared memory of `gateway.limits`.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gateway.limits import Bucket, Limited, Limits
from gateway.refusal import Refusal
from gateway.waiting import ANYONE, Claim
from gateway.wire import Settings, TenantCounters, TenantEntry, TenantLimit

KEY_PREFIX: Final = "tgm"
_NO_DIGEST: Final = bytes(32)
_BUSY_RETRY_S: Final = 1


class Quota(Limited):
    """One limit of a tenant, and what is in use of it in this worker."""

    __slots__ = ("bucket",)

    def __init__(self, slot: int, concurrency: int, bucket: Bucket | None) -> None:
        super().__init__(slot, concurrency)
        self.bucket = bucket


@dataclass
class Usage:
    """What a tenant used in this worker since it started."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    """(model, code) -> requests that ended so."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Model -> request-seconds."""
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> requests that a limit of the tenant refused."""

    def counters(self, tenant: str) -> TenantCounters:
        """As the wire has it."""
        return TenantCounters(
            name=tenant,
            requests=tuple((model, code, count) for (model, code), count in self.requests.items()),
            seconds=tuple(self.seconds.items()),
            refused=tuple(self.refused.items()),
        )


class Tenant:
    """One tenant as a worker knows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entry = TenantEntry(name=name)
        self.claim = ANYONE
        self.usage = Usage()
        self.reported = TenantCounters(name=name)
        self.in_flight = 0
        self.quotas: dict[str, Quota] = {}
        """By model; "": over all."""
        self.terms: dict[str, Terms] = {}
        """By model, for those that were asked for since the table last changed."""

    def agree(self, model: str) -> Terms:
        """What holds for requests for a model."""
        quotas = [self.quotas[name] for name in ("", model) if name in self.quotas]
        buckets = [quota.bucket for quota in quotas if quota.bucket is not None]
        made = self.terms[model] = Terms(model, self.may_use(model), quotas, buckets)
        return made

    def may_use(self, model: str) -> bool:
        """Whether the model is among those allowed."""
        return self.entry.models is None or model in self.entry.models


@dataclass(frozen=True)
class Terms:
    """What holds for a tenant's requests for one model."""

    model: str
    allowed: bool
    quotas: list[Quota]
    buckets: list[Bucket]


class Pass:
    """A request of a tenant within its limits; given back exactly once."""

    __slots__ = ("since", "tenant", "terms")

    def __init__(self, tenant: Tenant, terms: Terms, since: float) -> None:
        self.tenant = tenant
        self.terms = terms
        self.since = since


class Tenants:
    """All tenants of one worker."""

    def __init__(self, limits: Limits) -> None:
        self.require_key = False
        self.by_name: dict[str, Tenant] = {}
        self._limits = limits
        self._keys: dict[str, tuple[bytes, Tenant]] = {}

    @property
    def asking(self) -> bool:
        """Whether it matters who asks."""
        return self.require_key or bool(self._keys)

    def apply(self, settings: Settings) -> None:
        """Follow the table. Usage, and what is in flight, goes on; a tenant that is gone is forgotten."""
        self.require_key = settings.require_key
        names = {entry.name for entry in settings.tenants}
        for name in [n for n in self.by_name if n not in names]:
            del self.by_name[name]
        self._keys.clear()
        for entry in settings.tenants:
            tenant = self.by_name.setdefault(entry.name, Tenant(entry.name))
            if tenant.entry.limits != entry.limits or not tenant.quotas:
                tenant.quotas = {limit.model: self._quota(limit, tenant.quotas) for limit in entry.limits}
            tenant.entry = entry
            tenant.terms.clear()
            tenant.claim = Claim(entry.name, entry.priority, entry.weight)
            for key in entry.keys:
                self._keys[key.id] = (bytes.fromhex(key.sha256), tenant)

    def identify(self, credential: str | None) -> Tenant | Refusal | None:
        """Who asks; None where nobody is asked who they are and no key was given."""
        if credential is None or (not self._keys and not self.require_key):
            if not self.require_key:
                return None
            return Refusal(
                401, "unauthorized", "no API key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            )
        _, _, rest = credential.partition("_")
        stored, tenant = self._keys.get(rest.partition("_")[0], (_NO_DIGEST, None))
        given = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()
        if hmac.compare_digest(given, stored) and tenant is not None:
            return tenant
        return Refusal(401, "unauthorized", "the API key is not known here, or was revoked")

    def admit(self, tenant: Tenant, model: str, now: float) -> Pass | Refusal:
        """Whether a request is within the tenant's limits."""
        terms = tenant.terms.get(model) or tenant.agree(model)
        if not terms.allowed:
            return self._refuse(tenant, 403, "forbidden", f"tenant {tenant.name!r} may not use model {model!r}")
        wait = 0.0
        for bucket in terms.buckets:
            more = bucket.wait_s(now)
            if more > wait:
                wait = more
        if wait > 0:
            text = f"tenant {tenant.name!r} has sent more requests a second than it may"
            return self._refuse(tenant, 429, "rate_limit", text, max(1, math.ceil(wait)))
        for quota in terms.quotas:
            if not self._limits.acquire(quota):
                for taken in terms.quotas[: terms.quotas.index(quota)]:
                    self._limits.release(taken)
                text = f"tenant {tenant.name!r} has as many requests in progress as it may"
                return self._refuse(tenant, 429, "concurrency_limit", text, _BUSY_RETRY_S)
        for bucket in terms.buckets:
            bucket.take(now)
        tenant.in_flight += 1
        return Pass(tenant, terms, now)

    def release(self, held: Pass, code: int, now: float) -> None:
        """The request ended with this code."""
        for quota in held.terms.quotas:
            self._limits.release(quota)
        tenant, model = held.tenant, held.terms.model
        tenant.in_flight -= 1
        usage = tenant.usage
        key = (model, code)
        usage.requests[key] = usage.requests.get(key, 0) + 1
        usage.seconds[model] = usage.seconds.get(model, 0.0) + now - held.since

    def report(self, *, full: bool) -> tuple[TenantCounters, ...]:
        """Of each tenant that used something since the last report, or ever, what it used so far."""
        told = []
        for tenant in self.by_name.values():
            counters = tenant.usage.counters(tenant.name)
            if counters != tenant.reported or (full and counters.requests + counters.refused):
                tenant.reported = counters
                told.append(counters)
        return tuple(told)

    def _quota(self, limit: TenantLimit, former: dict[str, Quota]) -> Quota:
        quota = former.get(limit.model)
        if quota is None:
            return Quota(limit.slot, limit.concurrency, self._bucket(limit, None))
        old_slot, quota.slot = quota.slot, limit.slot
        quota.concurrency, quota.bucket = limit.concurrency, self._bucket(limit, quota.bucket)
        if old_slot != limit.slot:
            self._limits.move(quota, old_slot)
        return quota

    def _bucket(self, limit: TenantLimit, former: Bucket | None) -> Bucket | None:
        if not limit.requests_per_s:
            return None
        burst = limit.burst or max(1, math.ceil(limit.requests_per_s))
        if former is None or (former.rate, former.burst) != (limit.requests_per_s, burst):
            return self._limits.bucket(limit.requests_per_s, burst, limit.slot)
        former.take_slot(limit.slot)
        return former

    @staticmethod
    def _refuse(tenant: Tenant, status: int, reason: str, message: str, retry_after_s: int | None = None) -> Refusal:
        tenant.usage.refused[reason] = tenant.usage.refused.get(reason, 0) + 1
        return Refusal(status, reason, message, retry_after_s)


#: Fields that may carry a key, lower case.
CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key"})


def credential(fields: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key that a request carries, if any."""
    for name, value in fields:
        lower = name.lower()
        if lower == b"x-api-key":
            return value.decode("latin-1").strip()
        if lower == b"authorization":
            scheme, _, given = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return given.strip()
    return None
