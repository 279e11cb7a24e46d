"""The benchmark's own parts: a measuring program that measures wrongly is worse than none."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import local
from benchmarks.admin import AdminError
from benchmarks.bars import Bar, at_most, verdict_lines
from benchmarks.control import fleet
from benchmarks.control.traffic import Traffic
from tangram.spec import load_documents

LOAD_S = 0.3


@pytest.fixture
def replica() -> Iterator[int]:
    """Port of a running replica of the benchmark."""
    (port,) = local.free_ports(1)
    command = [sys.executable, str(Path(fleet.__file__).with_name("replica.py")), str(port), str(LOAD_S), "0.0"]
    with subprocess.Popen(command) as process:
        try:
            assert local.wait_until(lambda: local.listens(port), 20)
            yield port
        finally:
            process.kill()


@pytest.mark.integration
def test_a_replica_tells_how_long_its_own_start_took(replica: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", replica, timeout=5)
    connection.request("POST", "/v2/models/any/infer", b"{}")
    told = json.loads(connection.getresponse().read())["start_s"]
    connection.close()
    # Field 22 of /proc/PID/stat has a resolution of 10 ms.
    assert LOAD_S - 0.02 <= told < 20


@pytest.mark.integration
def test_traffic_counts_what_fails_and_when(replica: int) -> None:
    (dead,) = local.free_ports(1)
    with Traffic(f"http://127.0.0.1:{replica}", "any") as good, Traffic(f"http://127.0.0.1:{dead}", "any") as bad:
        assert local.wait_until(lambda: good.answered > 20 and len(bad.failures) > 20, 20)
        assert good.ask_once()
        assert not bad.ask_once()
    assert good.failures == []
    assert bad.answered == 0
    assert all(what.startswith("ConnectionRefusedError") for what in bad.failed_since(0))
    assert bad.failed_since(time.monotonic()) == []


def test_the_fleet_is_one_that_tangram_takes(tmp_path: Path) -> None:
    fleet.write(tmp_path / "fleet.yaml")
    documents = load_documents(tmp_path / "fleet.yaml")
    assert {m.name for m in documents.models} == {fleet.STEADY, *fleet.COLD}
    assert all(m.spec.scaling.min_replicas == 0 for m in documents.models if m.name in fleet.COLD)


def test_a_bar_that_could_not_be_measured_is_missed() -> None:
    assert at_most(0.4999, 0.5) == Bar(0.5, 0.5, True)
    assert not at_most(0.5001, 0.5).met
    assert not at_most(None, 0.5).met
    assert verdict_lines({"a_s": at_most(0.25, 0.5), "b": at_most(None, 1)}) == [
        "met     a_s: 0.25 (bar 0.5)",
        "MISSED  b: none (bar 1)",
    ]


def test_waiting_ends_when_the_condition_holds_or_the_time_is_over() -> None:
    answers = iter(("no", "error", "yes"))

    def condition() -> bool:
        answer = next(answers)
        if answer == "error":
            raise AdminError("not yet")
        return answer == "yes"

    assert local.wait_until(condition, 10, 0.0)
    assert not local.wait_until(lambda: False, 0.0)
