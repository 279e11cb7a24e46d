"""What every declared document has in common: names, metadata, and that unknown fields are errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

API_VERSION: Final = "tangram.dev/v1alpha1"
#: A DNS-1123 label, as Kubernetes wants it of object names; short enough that replica names stay labels too.
Name = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=52, strict=True)
]
Percent = Annotated[int, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SpecError(ValueError):
    """A document that cannot be accepted; nothing of its file or request was applied."""


class Doc(BaseModel):
    """Frozen; camelCase on the wire; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_default=True)


def refuse_twice(field: str, names: Iterable[str]) -> None:
    """Raise ValueError for a name that a list field gives twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field} names {name!r} twice; names are unique")
        seen.add(name)


class Metadata(Doc):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
