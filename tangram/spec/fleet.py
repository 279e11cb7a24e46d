"""`Fleet`: the virtual nodes and devices of one machine, and what holds for its gateway."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from tangram.spec.base import API_VERSION, Doc, Metadata, Name, refuse_twice
from tangram.spec.quantity import MiB, MilliCPU, mib_text


class DeviceSpec(Doc):
    name: Name
    model: str = "virtual"
    """What kind of device it stands for; `deviceSelector.models` matches it."""
    memory: Annotated[MiB, Field(ge=1)]
    reserve: MiB = 0
    """Kept free for driver and context overhead."""
    cores: Annotated[MilliCPU, Field(ge=1)]
    """CPU cores that stand for 100 percent of the device's compute."""
    max_clients: Annotated[int, Field(ge=1)] = 48
    labels: dict[str, str] = {}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.reserve >= self.memory:
            raise ValueError(
                f"reserve {mib_text(self.reserve)} leaves nothing of memory {mib_text(self.memory)}; lower it"
            )
        return self


class LinkSpec(Doc):
    """Devices of one node that are linked with each other directly, each with each."""

    devices: Annotated[tuple[Name, ...], Field(min_length=2)]
    nvlinks: Annotated[int, Field(ge=1)] = 1
    """How many links each pair has; a pair that no entry names talks over PCIe."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_twice("devices", self.devices)
        return self


class NodeSpec(Doc):
    name: Name
    cpu: MilliCPU | None = None
    """Host CPU to give to Instances; absent is unbounded."""
    memory: MiB | None = None
    """Host memory to give to Instances; absent is unbounded."""
    labels: dict[str, str] = {}
    devices: Annotated[tuple[DeviceSpec, ...], Field(min_length=1)]
    links: tuple[LinkSpec, ...] = ()
    """Which devices are linked directly; slices of several devices get the set that is linked best."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_twice("devices", (d.name for d in self.devices))
        known = [d.name for d in self.devices]
        for link in self.links:
            for name in link.devices:
                if name not in known:
                    raise ValueError(f"links names device {name!r}; devices of the node are {', '.join(known)}")
        return self

    def links_of(self, device: str) -> dict[str, int]:
        """By name of another device of the node: how many links lead to it; what several entries give adds up."""
        found: dict[str, int] = {}
        for link in self.links:
            for other in link.devices if device in link.devices else ():
                if other != device:
                    found[other] = found.get(other, 0) + link.nvlinks
        return found


class TotalQueue(Doc):
    """Bounds of all waiting rooms of a gateway worker together."""

    max_requests: Annotated[int, Field(ge=0)] = 10_000
    max_memory: MiB = Field(default="256Mi")  # type: ignore[assignment]


class GatewaySpec(Doc):
    queue: TotalQueue = TotalQueue()


class PrometheusSpec(Doc):
    """The server that metrics of type `prometheus` are asked of."""

    url: Annotated[str, StringConstraints(max_length=1000)]
    """Where its API is, without `/api/v1`; for example http://127.0.0.1:9090."""
    period_seconds: Annotated[float, Field(ge=1, le=3600)] = 15.0
    """Between two times that it is asked. What is older than three of them is not used."""
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0
    bearer_token_file: str | None = None
    """Sent as `Authorization: Bearer`; read each time, relative to the fleet's file."""

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise ValueError(
                f"{value!r} is no address; write http:// or https://, host and port, and nothing from a ? or # on"
            )
        return value


class FleetSpec(Doc):
    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    gateway: GatewaySpec = GatewaySpec()
    prometheus: PrometheusSpec | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_twice("nodes", (n.name for n in self.nodes))
        return self


class Fleet(Doc):
    """Virtual nodes and devices of one machine. Devices that NVML finds are added to them."""

    api_version: Literal["tangram.dev/v1alpha1"] = API_VERSION
    kind: Literal["Fleet"] = "Fleet"
    metadata: Metadata
    spec: FleetSpec
