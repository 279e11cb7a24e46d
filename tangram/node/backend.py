"""What the control loop asks of a machine: start, stop and observe Instances.

`tangram.node.local.LocalBackend` is the one for processes on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from packer.inventory import MigInstance

if TYPE_CHECKING:
    from tangram.node.mechanisms.slices import GivenSlice, SliceSettings


class InstancePhase(StrEnum):
    STARTING = "starting"
    """The process lives and has not answered its readiness probe yet."""
    READY = "ready"
    UNREADY = "unready"
    """Was ready once; its probe has failed failure_threshold times in a row since."""
    EXITED = "exited"
    """The process is gone; nothing of its process group is left."""


@dataclass(frozen=True, slots=True)
class StartOrder:
    """All it takes to start one Instance; kept so that it can be started again after a crash."""

    instance: str
    model: str
    revision: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Added to the controller's own environment."""
    port: int
    working_dir: Path | None = None
    readiness_path: str = "/v2/health/ready"
    readiness_period_s: float = 1.0
    readiness_timeout_s: float = 1.0
    failure_threshold: int = 3
    liveness_s: float = 60.0
    """Seconds without any answer to a probe after which an Instance that was ready once is killed."""
    cpu_cores: float | None = None
    """Share of the host's cores that stands for the slice's compute; None is unbounded."""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """What finds a process again after the controller was restarted: a pid alone may have been reused."""

    order: StartOrder
    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat."""
    started_at: float | None = None
    """As its status said, so that it says the same after adoption; None: worked out from start_ticks."""
    ready_at: float | None = None
    """When it was ready first: tells an Instance too busy to answer a probe from one that still loads."""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What was last seen of one Instance."""

    instance: str
    model: str
    pid: int
    start_ticks: int
    port: int
    phase: InstancePhase
    started_at: float
    """Wall clock (Unix seconds), as all times here."""
    ready_at: float | None = None
    """When it was ready first."""
    exited_at: float | None = None
    exit_code: int | None = None
    """As subprocess has it (negative: signal); None while it lives, or where another process reaped it."""
    cpu_percent: float | None = None
    """Of one core, over the whole process tree, since the last measurement; None before the second one."""
    memory_mib: float | None = None
    """PSS of the process tree."""
    message: str = ""
    """Last probe failure or the last line of its log after a crash, for people."""
    adopted: bool = False


class Backend(Protocol):
    """All methods are idempotent; none blocks the event loop."""

    def settings(self, given: GivenSlice) -> SliceSettings:
        """What a process on a slice needs, as far as it is known without asking its devices; StartError."""

    async def prepare(self, given: GivenSlice, held: Callable[[str], Collection[MigInstance]]) -> SliceSettings:
        """Have the devices give a slice, and say what its process needs; StartError where they do not.

        `held` is which GPU instances of a device anybody holds on record, asked when the device's turn has come.
        """

    async def tidy(self, used: Callable[[], Collection[str]]) -> None:
        """End what runs beside devices that no slice uses by MPS; `used` is asked when a device's turn has come."""

    async def start(self, order: StartOrder) -> InstanceStatus:
        """Start a process for the order; StartError where the system refuses (no such command, no such folder)."""

    async def stop(self, instance: str, grace_s: float) -> None:
        """SIGTERM to the process group, SIGKILL after grace_s; returns when the process is gone."""

    def resize(self, instance: str, cores: float | None) -> None:
        """Hold a running Instance to so many cores from now on; nothing where there is none."""

    def forget(self, instance: str) -> None:
        """Drop the status of an exited Instance."""

    def statuses(self) -> Mapping[str, InstanceStatus]:
        """Every Instance known, exited ones until they are started again or forgotten."""

    def log_path(self, instance: str) -> Path:
        """File with standard output and error of the Instance (rotated: older parts beside it, .1, .2, ...)."""


class StartError(Exception):
    """The system refused to start the process; the text says why and what to mend."""
