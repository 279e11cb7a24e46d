"""`tangram up`: looks at everything that would stop it, then becomes the supervisor.

Each thing in the way is one clear line and exit code 2. Where a killed supervisor left its processes behind, the ports
they hold are in nobody's way: the supervisor adopts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tangram.cli.client import CommandError, can_listen
from tangram.control.paths import StatePaths
from tangram.node.processes import Stat, find_processes, read_stat

if TYPE_CHECKING:
    from tangram.spec import Documents

UNUSABLE = 2


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `tangram up` was told."""

    file: Path
    listen: str
    admin: str
    state: Path
    workers: int
    log_json: bool = False
    insecure_listen: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    advise: bool = False
    no_fast_path: bool = False
    no_native: bool = False


def up(options: UpOptions) -> None:
    """Check and exec the supervisor; returns never. Raises CommandError."""
    arguments = prepare(options)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tangram.control.supervisor", *arguments])


def prepare(options: UpOptions) -> list[str]:
    """The supervisor's arguments, once nothing stands in the way; makes the state directory. Raises CommandError."""
    listen = _address("--listen", options.listen)
    admin = _address("--admin", options.admin)
    if listen == admin:
        raise CommandError(f"--listen and --admin are both {options.listen}; give them different ports", UNUSABLE)
    documents = _check_file(options.file)
    paths = StatePaths(options.state)
    from tangram.control.store import holds_keys

    closed = not options.insecure_listen and not _is_local(listen[0])
    if closed and not any(t.spec.keys for t in documents.tenants) and not holds_keys(paths.database):
        raise CommandError(
            f"--listen: {options.listen} can be reached from other machines and no tenant has a key; declare a Tenant "
            "with a key (tangram key generate), listen on 127.0.0.1, or add --insecure-listen if that is what you want",
            UNUSABLE,
        )
    tls = _tls(options)
    _make_state(paths)
    with unused(paths):
        if not find_processes(paths.root):
            for flag, (host, port) in (("--listen", listen), ("--admin", admin)):
                if (reason := can_listen(host, port)) is not None:
                    raise CommandError(
                        f"{flag}: cannot listen on {host}:{port}: {reason}; stop what uses it or give another address",
                        UNUSABLE,
                    )
    arguments = ["--file", str(options.file), "--listen", options.listen, "--admin", options.admin]
    arguments += ["--state", str(options.state), "--workers", str(options.workers)]
    arguments += tls
    if closed:
        arguments.append("--require-key")
    if options.advise:
        arguments.append("--advise")
    if options.no_fast_path:
        arguments.append("--no-fast-path")
    if options.no_native:
        arguments.append("--no-native")
    return [*arguments, "--log-json"] if options.log_json else arguments


@contextlib.contextmanager
def unused(paths: StatePaths) -> Iterator[None]:
    """Hold the supervisor's lock of a state directory; CommandError if a live supervisor holds it."""
    try:
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandError(f"--state: {paths.root} is not writable: {error.strerror}", UNUSABLE) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        holder = supervisor_of(paths)
        raise CommandError(
            f"--state: {paths.root} is in use by a running `tangram up`"
            + (f" (pid {holder.pid})" if holder else "")
            + "; stop that one or give another directory",
            UNUSABLE,
        ) from None
    finally:
        os.close(lock)


def supervisor_of(paths: StatePaths) -> Stat | None:
    """The process that took the lock last, by what it wrote of itself there; None where it is not there any more.

    A number alone proves nothing: it may be another process's by now. Its start time tells.
    """
    with contextlib.suppress(OSError, ValueError):
        pid, start_ticks = map(int, paths.lock.read_text(encoding="ascii").split())
        stat = read_stat(pid) if pid > 1 else None
        if stat is not None and not stat.dead and stat.start_ticks == start_ticks:
            return stat
    return None


def _address(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        bare = host.strip("[]") if host.startswith("[") else host
        if bare and (host.startswith("[") or ":" not in host):
            return bare, int(port)
    raise CommandError(f"{flag}: {text!r} is not HOST:PORT; write for example 127.0.0.1:8080 or [::1]:8080", UNUSABLE)


def _is_local(host: str) -> bool:
    from tangram.control.security import is_loopback

    return host == "localhost" or is_loopback(host)


def _tls(options: UpOptions) -> list[str]:
    """The supervisor's arguments about TLS, once the files are good."""
    if options.tls_cert is None and options.tls_key is None:
        return []
    if options.tls_cert is None or options.tls_key is None:
        raise CommandError("--tls-cert and --tls-key belong together; give both", UNUSABLE)
    from gateway.tls import BadCertificate, load

    try:
        load(options.tls_cert, options.tls_key)
    except BadCertificate as error:
        raise CommandError(str(error), UNUSABLE) from None
    return ["--tls-cert", str(options.tls_cert.absolute()), "--tls-key", str(options.tls_key.absolute())]


def _check_file(file: Path) -> Documents:
    from tangram.spec import SpecError, load_documents

    try:
        documents = load_documents(file)
    except SpecError as error:
        raise CommandError(str(error), UNUSABLE) from None
    for model in documents.models:
        source = model.spec.runtime.model
        if source is not None and not Path(source).is_file():
            raise CommandError(
                f"{file}: Model {model.name}: spec.runtime.model: there is no file {source}; mend the path", UNUSABLE
            )
    return documents


def _make_state(paths: StatePaths) -> None:
    try:
        paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=paths.root):
            pass
    except FileExistsError:
        raise CommandError(f"--state: {paths.root} is a file; give a directory", UNUSABLE) from None
    except OSError as error:
        raise CommandError(f"--state: {paths.root} is not writable: {error.strerror}", UNUSABLE) from None
