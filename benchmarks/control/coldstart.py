"""From zero: how much the first request waits beyond the start of the replica itself."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from typing import Any
from urllib.parse import urlsplit

from benchmarks.admin import Admin
from benchmarks.bars import Bar, at_most
from benchmarks.control import fleet


def measure(admin: Admin) -> tuple[dict[str, Any], dict[str, Bar]]:
    """(figures, bars) over models that have no replica yet; an unanswered request misses the bar."""
    overheads: list[float] = []
    refused: list[str] = []
    for name in fleet.COLD:
        began = time.monotonic()
        status, body = _ask(admin.gateway, name)
        took = time.monotonic() - began
        if status == 200:
            overheads.append(took - json.loads(body)["start_s"])
        else:
            refused.append(f"{name}: {status}: {body[:200].decode(errors='replace')}")
    figures = {"overheads_s": [round(o, 3) for o in overheads], "refused": refused}
    worst = None if refused else max(overheads)
    if overheads:
        figures["median_s"] = round(statistics.median(overheads), 3)
    return figures, {
        "cold_start_failures": at_most(len(refused), 0),
        "cold_start_overhead_s": at_most(worst, 0.5),
    }


def _ask(gateway: str, model: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=40)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", b"{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
