"""A gateway worker: one process with one event loop, started and watched by a supervisor.

    python -m gateway.worker --listen 127.0.0.1:8080 --index 0 --workers 1 \\
        --controller wire.sock --cache table-0.json --limits limits.shm

It serves the table it finds in its cache at once, connects to the controller for a newer one, and serves on without.
SIGTERM or SIGINT: /readyz turns false, no more connections are accepted, what is in flight finishes within 30 s, and
the process ends with 0; a second signal cuts that short. An address that is in use, or a file that cannot be made,
gives one line and exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway import native
from gateway.listener import parse_address
from gateway.logs import configure

#: glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK: Final = 1024 * 1024
_KEPT_HEAP: Final = 4 * 1024 * 1024


def keep_heap() -> None:
    """Keep freed memory of the size of a few bodies, instead of giving it back and asking for it with each request."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a worker; ends the process with code 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="gateway.worker", description="One worker of the gateway.")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT", help="where clients connect")
    parser.add_argument("--index", type=int, required=True, help="which of the workers this is, from 0")
    parser.add_argument("--workers", type=int, default=1, help="how many workers there are")
    parser.add_argument("--controller", type=Path, required=True, help="the controller's Unix socket")
    parser.add_argument("--cache", type=Path, required=True, help="file that keeps the last table")
    parser.add_argument("--limits", type=Path, required=True, help="file of the memory that workers share")
    parser.add_argument("--admin-host", default="127.0.0.1", help="address of /metrics, /healthz and /readyz")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain (PEM); it is read again when it changes")
    parser.add_argument("--tls-key", type=Path, help="its private key (PEM)")
    parser.add_argument(
        "--no-fast-path", dest="fast_path", action="store_false", help="take every request through the full path"
    )
    parser.add_argument(
        "--no-native", dest="native", action="store_false", help="run plain Python even where there is compiled code"
    )
    parser.add_argument("--log-json", action="store_true", help="log one JSON object a line")
    options = parser.parse_args(arguments)
    if options.workers < 1 or not 0 <= options.index < options.workers:
        parser.error(f"--index {options.index} is not that of one of {options.workers} workers")
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker with these command line arguments; its exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    configure(as_json=options.log_json)
    lacking = native.take() if options.native else "--no-native"
    # Only now: what these import may be compiled.
    import uvloop

    from gateway.serving import StartError, serve

    keep_heap()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options, f"no, {lacking}" if lacking else "yes"))
    except StartError as error:
        print(f"gateway worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
