"""`Tenant`: who may use the gateway, and how much of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tangram.spec.base import API_VERSION, Doc, Metadata, Name, Positive, refuse_twice


class RequestLimits(Doc):
    requests_per_second: Positive | None = None
    burst: Annotated[int, Field(ge=1)] | None = None
    """Requests that may come at once; those of one second where absent."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Requests in progress at most."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("burst is given without requestsPerSecond; give both or neither")
        return self


class KeyHash(Doc):
    """A key that was made elsewhere (`tangram key generate`)."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$", strict=True)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key."""


class TenantSpec(Doc):
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Of its requests that wait: the highest is served first."""
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    """Its share of the turns among waiting tenants of the same priority."""
    models: tuple[Name, ...] | None = None
    """Models it may use; all where absent."""
    limits: RequestLimits = RequestLimits()
    """Over all models."""
    model_limits: dict[Name, RequestLimits] = {}
    keys: tuple[KeyHash, ...] = ()
    """Besides those that `tangram key create` makes."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_twice("keys", (key.id for key in self.keys))
        return self


class Tenant(Doc):
    """Who may use the gateway, and how much of it."""

    api_version: Literal["tangram.dev/v1alpha1"] = API_VERSION
    kind: Literal["Tenant"] = "Tenant"
    metadata: Metadata
    spec: TenantSpec = TenantSpec()

    @property
    def name(self) -> str:
        """`metadata.name`, unique in a fleet."""
        return self.metadata.name
