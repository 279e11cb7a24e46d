"""What a replica runs: the server, how it is known to be ready, and what it takes of its node's host."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from tangram.spec.base import Doc, NonNegative, Positive
from tangram.spec.quantity import MiB, MilliCPU


class RuntimeKind(StrEnum):
    EMBEDDED = "embedded"
    """Our own small Open Inference Protocol server around a Python class (`runtime.model`)."""
    COMMAND = "command"
    """Any server that listens on `{port}`."""


class Protocol(StrEnum):
    OIP = "oip"
    OPENAI = "openai"
    HTTP = "http"


class EnvVar(Doc):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str = ""


class Readiness(Doc):
    """HTTP GET on the replica's port; 2xx is ready."""

    path: Annotated[str, StringConstraints(pattern=r"^/")] = "/v2/health/ready"
    period_seconds: Positive = 1.0
    timeout_seconds: Positive = 1.0
    failure_threshold: Annotated[int, Field(ge=1)] = 3


class Liveness(Doc):
    """A replica that was ready, and then gives its readiness probe no answer at all for `periodSeconds` times
    `failureThreshold`, is killed and started again. One that answers that it is not ready is left alone.
    """

    period_seconds: Positive = 10.0
    failure_threshold: Annotated[int, Field(ge=1)] = 6


class Runtime(Doc):
    kind: RuntimeKind = RuntimeKind.EMBEDDED
    model: str | None = None
    """Embedded: path of the Python file that defines the model, relative to the fleet's file."""
    command: tuple[str, ...] = ()
    """Command: argv; `{port}`, `{host}`, `{model}`, `{replica}` and `{devices}` (how many) are replaced. Run without a
    shell."""
    image: str | None = None
    """Container image; used on Kubernetes only."""
    working_dir: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port inside a container; on one machine each replica gets a free port of its own."""
    protocol: Protocol = Protocol.OIP
    readiness: Readiness = Readiness()
    liveness: Liveness = Liveness()
    env: tuple[EnvVar, ...] = ()
    progress_deadline_seconds: Positive = 120.0
    """A start that is not ready after this long is ended, said so, and tried elsewhere with back-off."""
    termination_grace_period_seconds: NonNegative = 10.0
    """Seconds between SIGTERM and SIGKILL."""

    @field_validator("command", mode="before")
    @classmethod
    def _argv(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(
                "is a string; write a list of arguments, for example [python, server.py, --port, '{port}']"
            )
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind is RuntimeKind.EMBEDDED and not self.model:
            raise ValueError("model is missing; an embedded runtime names the Python file that defines the model")
        if self.kind is RuntimeKind.COMMAND and not self.command and not self.image:
            raise ValueError("command is missing; a command runtime gives the argv to start")
        if len({e.name for e in self.env}) != len(self.env):
            raise ValueError("env names a variable twice; keep one entry of each name")
        return self


class ResourceList(Doc):
    cpu: MilliCPU = 0
    memory: MiB = 0


class Resources(Doc):
    """What an Instance takes of its Node's host."""

    requests: ResourceList = ResourceList()
