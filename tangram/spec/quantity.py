"""Kubernetes quantities: text on the wire, integers in Python (MiB of memory, thousandths of a core)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation, Overflow
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SUFFIXES: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{s: Decimal(1000) ** i for i, s in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{s: Decimal(1024) ** i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([numkMGTPE]i?|Ki|)")
_MIB: Final = 1024 * 1024
_LARGEST: Final = Decimal(2) ** 63


def parse_quantity(value: str | int | float) -> Decimal:
    """The plain number a Kubernetes quantity stands for ("500m" is 0.5, "2Gi" is 2147483648)."""
    if isinstance(value, bool):
        raise ValueError("must be a quantity such as 512Mi or 500m, not a boolean")
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a quantity; write for example 512Mi, 2Gi, 500m or 0.5")
    try:
        number = Decimal(match[1]) * _SUFFIXES[match[2]]
    except (InvalidOperation, KeyError):
        raise ValueError(f"{value!r} is not a quantity; write for example 512Mi, 2Gi, 500m or 0.5") from None
    except Overflow:
        number = Decimal("Infinity")
    if number > _LARGEST:
        raise ValueError(f"{value!r} is more than a quantity can be; write at most 8Ei")
    if number < 0:
        raise ValueError(f"{value!r} is negative; a quantity is zero or more")
    return number


def _to_mib(value: object) -> object:
    # Bytes are rounded up, so that what is reserved always covers what was asked for.
    if isinstance(value, str | int | float):
        return math.ceil(parse_quantity(value) / _MIB)
    return value


def _to_milli(value: object) -> object:
    if isinstance(value, str | int | float):
        return math.ceil(parse_quantity(value) * 1000)
    return value


def mib_text(value: int | str) -> str:
    """MiB as a quantity; a text (a default as written, on its way into a JSON schema) stays as it is."""
    if isinstance(value, str):
        return value
    return f"{value // 1024}Gi" if value and value % 1024 == 0 else f"{value}Mi"


def _from_milli(value: int) -> str:
    return str(value // 1000) if value % 1000 == 0 else f"{value}m"


_QUANTITY_SCHEMA: Final = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
    "pattern": r"^[+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?([numkMGTPE]|[KMGTPE]i)?$",
}
#: Memory as a Kubernetes quantity of bytes on the wire, integer MiB (rounded up) in Python.
MiB = Annotated[
    int, BeforeValidator(_to_mib), PlainSerializer(mib_text, when_used="json"), WithJsonSchema(_QUANTITY_SCHEMA)
]
#: CPU as a Kubernetes quantity of cores on the wire, integer thousandths of a core (rounded up) in Python.
MilliCPU = Annotated[
    int, BeforeValidator(_to_milli), PlainSerializer(_from_milli, when_used="json"), WithJsonSchema(_QUANTITY_SCHEMA)
]
