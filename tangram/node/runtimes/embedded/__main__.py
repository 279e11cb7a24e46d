"""`python -m tangram.node.runtimes.embedded --model FILE.py --name NAME --host HOST --port PORT`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

# One thread a replica: its share of the machine is held by the CPU budget, not by a pool of BLAS threads.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


def main() -> int:
    """Serve until SIGTERM; the exit code is 0 after it, 1 where the model cannot be loaded, 2 on a bad command line."""
    parser = argparse.ArgumentParser(prog="python -m tangram.node.runtimes.embedded", description=main.__doc__)
    parser.add_argument("--model", required=True, type=Path, metavar="FILE.py", help="file that defines the model")
    parser.add_argument("--name", help="name to serve it under (default: the file's name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and logs it")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")

    from tangram.node.runtimes.embedded.budget import CoresFile, cores_from
    from tangram.node.runtimes.embedded.server import serve

    try:
        cores = cores_from(os.environ.get("TANGRAM_CPU_CORES"))
    except ValueError as error:
        parser.error(str(error))
    told = os.environ.get("TANGRAM_CPU_FILE")
    file = CoresFile(told) if told else None
    return serve(arguments.model, arguments.name or arguments.model.stem, arguments.host, arguments.port, cores, file)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A load or a call whose client has left may still run in the model's thread, and nobody waits for it.
    os._exit(code)
