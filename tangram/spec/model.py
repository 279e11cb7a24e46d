"""`Model`: what an operator declares of one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from tangram.spec.base import API_VERSION, Doc, Metadata, Name
from tangram.spec.rollout import Rollout
from tangram.spec.runtime import Resources, Runtime
from tangram.spec.scaling import Scaling
from tangram.spec.slices import SliceSpec
from tangram.spec.traffic import Traffic


class ModelSpec(Doc):
    project: Name = "default"
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher is served first when the fleet cannot hold all; each step doubles what a late request counts."""
    runtime: Runtime
    resources: Resources = Resources()
    slice: SliceSpec
    scaling: Scaling = Scaling()
    traffic: Traffic = Traffic()
    rollout: Rollout = Rollout()


class Model(Doc):
    api_version: Literal["tangram.dev/v1alpha1"] = API_VERSION
    kind: Literal["Model"] = "Model"
    metadata: Metadata
    spec: ModelSpec

    @property
    def name(self) -> str:
        """`metadata.name`, unique in a fleet."""
        return self.metadata.name

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic has it; the copy works out its revision itself."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("revision", None)
        return copied

    @cached_property
    def revision(self) -> str:
        """Eight hex digits over the fields that shape the process; a replica of another revision must be replaced."""
        shape = self.spec.model_dump(mode="json", include={"runtime", "resources", "slice"}, by_alias=True)
        for later in ("readiness", "liveness", "progressDeadlineSeconds", "terminationGracePeriodSeconds"):
            del shape["runtime"][later]
        del shape["slice"]["computeLimit"]
        if shape["slice"]["devices"] == 1:
            # As it was before there was such a field.
            del shape["slice"]["devices"]
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:8]
