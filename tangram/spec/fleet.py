"""`Fleet`: the virtual nodes and devices of one machine, and what holds for its gateway."""

from __future__ import annotations

import re
from enum import StrEnum
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
    healthy: bool = True
    """False takes it out of service: it gets no replicas, and those that it holds go elsewhere."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.reserve >= self.memory:
            raise ValueError(
                f"reserve {mib_text(self.reserve)} leaves nothing of memory {mib_text(self.memory)}; lower it"
            )
        return self


class Distance(StrEnum):
    """Over PCIe, as `nvidia-smi topo -m` has it."""

    PIX = "PIX"
    """One PCIe switch between them."""
    PXB = "PXB"
    """Several PCIe switches, and no host bridge."""
    PHB = "PHB"
    """A PCIe host bridge."""
    NODE = "NODE"
    """Host bridges of one NUMA node."""
    SYS = "SYS"
    """The interconnect between NUMA nodes."""


class LinkSpec(Doc):
    """How devices of one node are linked with each other, each with each: by NVLink, or else how far over PCIe."""

    devices: Annotated[tuple[Name, ...], Field(min_length=2)]
    distance: Distance | None = None
    """How far each pair is apart over PCIe; of several entries the nearest holds, and SYS where there is none."""
    nvlinks: Annotated[int, Field(ge=0)] = 1
    """How many NVLinks each pair has; absent is one, and none where a distance is given."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        refuse_twice("devices", self.devices)
        if "nvlinks" not in self.model_fields_set and self.distance is not None:
            self.__dict__["nvlinks"] = 0
        if not self.nvlinks and self.distance is None:
            raise ValueError("nvlinks 0 says nothing without a distance; give one, or leave the entry out")
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
    """Which devices are linked, and how; replicas of several devices get the set that is linked best."""

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
        return {other: count for other, count in found.items() if count}

    def distances_of(self, device: str) -> dict[str, Distance]:
        """By name of another device of the node: how far it is; the nearest that an entry says."""
        order = list(Distance)
        found: dict[str, Distance] = {}
        for link in self.links:
            for other in link.devices if device in link.devices and link.distance is not None else ():
                if other != device and link.distance is not None:
                    found[other] = min(found.get(other, link.distance), link.distance, key=order.index)
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
