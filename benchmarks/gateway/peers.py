"""The proxies we are measured against, as an expert would run them; their configurations lie in `peers/`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.gateway import programs
from benchmarks.gateway.cost import cpu_s, family, memory, own_memory
from benchmarks.local import free_ports, wait_until

_FORK_S: Final = 10.0
_CONFIGURATIONS: Final = Path(__file__).with_name("peers")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy."""

    name: str
    port: int
    pids: Sequence[int]
    native: bool = False
    """Of ours: whether its hot modules are compiled."""

    def cpu_s(self) -> float:
        """User and system time of all its processes since they started."""
        return cpu_s(self.pids)

    def memory(self) -> int:
        """The proportional set size of all its processes, in bytes."""
        return memory(self.pids)

    def own_memory(self) -> int:
        """The part of it that maps no file."""
        return own_memory(self.pids)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy is started, and what stands behind it."""

    folder: Path
    cores: frozenset[int]
    upstream: Sequence[int]
    envoy: Path | None = None
    workers: int = 1
    """Of nginx; the others have one."""


def configured(text: str, place: Place, port: int) -> str:
    """A configuration with its ports and folder filled in."""
    values = {"FOLDER": str(place.folder), "LISTEN": str(port), "WORKERS": str(place.workers)}
    values |= {f"UPSTREAM_{index}": str(at) for index, at in enumerate(place.upstream)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _configuration(place: Place, file: str, port: int) -> Path:
    made = place.folder / file
    made.write_text(configured((_CONFIGURATIONS / file).read_text(encoding="utf-8"), place, port), encoding="utf-8")
    return made


def _nginx(place: Place, port: int) -> list[str | Path]:
    return [programs.find("nginx"), "-p", place.folder, "-c", _configuration(place, "nginx.conf", port)]


def _haproxy(place: Place, port: int) -> list[str | Path]:
    return [programs.find("haproxy"), "-db", "-f", _configuration(place, "haproxy.cfg", port)]


def _envoy(place: Place, port: int) -> list[str | Path]:
    options = ["--concurrency", "1", "--use-dynamic-base-id", "--disable-hot-restart", "--log-level", "error"]
    return [place.envoy or programs.find("envoy"), "-c", _configuration(place, "envoy.yaml", port), *options]


def _naive(place: Place, port: int) -> list[str | Path]:
    return [sys.executable, _CONFIGURATIONS / "naive_aiohttp.py", str(port), *map(str, place.upstream)]


NGINX: Final = "nginx"
ENVOY: Final = "envoy"
NAIVE: Final = "naive-aiohttp"
_COMMANDS: Final[dict[str, Callable[[Place, int], list[str | Path]]]] = {
    NGINX: _nginx,
    "haproxy": _haproxy,
    ENVOY: _envoy,
    NAIVE: _naive,
}
PEERS: Final = tuple(_COMMANDS)


@contextmanager
def running(name: str, place: Place) -> Iterator[Proxy]:
    """A peer until the end of the block. Raises programs.Missing and programs.Failed."""
    (port,) = free_ports(1)
    place.folder.mkdir(exist_ok=True)
    with programs.serving(_COMMANDS[name](place, port), port, place.folder / f"{name}.log", place.cores) as pid:
        # It listens before its workers are there.
        if name == NGINX and not wait_until(lambda: len(family(pid)) > place.workers, _FORK_S):
            raise programs.Failed(f"{name} has no {place.workers} workers")
        yield Proxy(name, port, family(pid))
