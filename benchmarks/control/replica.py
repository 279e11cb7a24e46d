"""A server that knows how long its own start took: `python replica.py PORT LOAD_SECONDS SERVICE_SECONDS`.

It listens LOAD_SECONDS after it was loaded, and every answer says in `start_s` how many seconds lay between the
start of its process (field 22 of /proc/self/stat) and the moment from which it answered.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service_s = 0.0
    start_s = 0.0

    def do_GET(self) -> None:
        self._answer({"ready": True})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.service_s)
        self._answer({"start_s": self.start_s, "pid": os.getpid()})

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    port, load_s, service_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    time.sleep(load_s)
    Handler.service_s = service_s
    with Server(("127.0.0.1", port), Handler) as server:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        Handler.start_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        server.serve_forever()


if __name__ == "__main__":
    main()
