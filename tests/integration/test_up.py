"""`tangram up` and what a user does next, by hand."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tangram.node.processes import find_processes

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def infer(installation: Any, model: str = "who", timeout: float = 20.0) -> tuple[int, dict[str, Any], Any]:
    body = {"inputs": [{"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [0]}]}
    request = urllib.request.Request(
        f"{installation.gateway}/v2/models/{model}/infer",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers


def test_up_serves_and_ctrl_c_leaves_nothing(installation: Any) -> None:
    installation.write()
    installation.up()
    ready = installation.wait_ready(2)
    status, answer, headers = infer(installation)
    assert status == 200
    assert answer["outputs"][0]["data"][0] in {r["pid"] for r in ready}
    assert headers["x-request-id"]
    assert "upstream" in headers["Server-Timing"]
    assert installation.stop() == 0
    assert find_processes(installation.state) == []


def test_a_model_at_zero_answers_its_first_request_and_goes_back_to_zero(installation: Any) -> None:
    installation.write(installation.document(scaling="minReplicas: 0, maxReplicas: 2, targetQPS: 50, idleSeconds: 2"))
    installation.up()
    installation.wait_ready(0)
    status, _, headers = infer(installation)
    assert status == 200
    assert "queue" in headers["Server-Timing"]
    installation.wait_ready(0, timeout_s=40.0)


def test_a_changed_spec_survives_a_restart_unless_the_file_changed(installation: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    assert installation.run("set", "who", "--target-qps", "7", "--max-replicas", "3").returncode == 0
    installation.stop()
    installation.up()
    installation.wait_ready(2)
    assert installation.get("/models/who")["targetQPS"] == 7
    installation.stop()
    installation.file.write_text(installation.file.read_text() + "# changed\n")
    installation.up()
    installation.wait_ready(2)
    assert installation.get("/models/who")["targetQPS"] is None


def test_what_stands_in_the_way_is_one_line_and_exit_code_2(installation: Any, tmp_path: Path) -> None:
    installation.write()
    flags = ["--listen", "127.0.0.1:1", "--admin", f"127.0.0.1:{installation.admin_port}"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        used = installation.run("up", str(installation.file), "--listen", listen, "--state", str(installation.state))
    assert used.returncode == 2
    assert listen in used.stderr
    assert len(used.stderr.strip().splitlines()) == 1

    blocked = tmp_path / "a-file"
    blocked.write_text("")
    state = installation.run("up", str(installation.file), *flags, "--state", str(blocked / "state"))
    assert state.returncode == 2
    assert "--state" in state.stderr

    installation.file.write_text(installation.file.read_text().replace("compute: 20", "compute: 200"))
    bad = installation.run("up", str(installation.file), "--state", str(installation.state))
    assert bad.returncode == 2
    assert "spec.slice.compute: 200" in bad.stderr
    assert find_processes(installation.state) == []


def test_a_slice_larger_than_any_device_is_refused_and_nothing_is_applied(installation: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    big = installation.folder / "big.yaml"
    big.write_text(
        installation.file.read_text().split("---")[1].replace("who}", "big}").replace("100Mi, limit: 200Mi", "9Gi")
    )
    refused = installation.run("apply", "-f", str(big))
    assert refused.returncode != 0
    assert "spec.slice.memory.request" in refused.stderr
    assert [m["name"] for m in installation.items("/models")] == ["who"]


def test_down_stops_what_a_killed_supervisor_left(installation: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    installation.supervisor.kill()
    installation.supervisor.wait()
    assert find_processes(installation.state)
    done = installation.run("down", "--state", str(installation.state))
    assert done.returncode == 0, done.stderr
    assert find_processes(installation.state) == []


def test_delete_and_apply(installation: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    assert installation.run("delete", "who").returncode == 0
    installation.wait_for(lambda: infer(installation)[0] == 404)
    applied = installation.run("apply", "-f", str(installation.file), "--wait")
    assert applied.returncode == 0, applied.stderr
    assert len(installation.replicas()) == 2
    assert infer(installation)[0] == 200


async def test_a_changed_model_rolls_without_a_lost_request(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    before = {r["pid"] for r in installation.wait_ready(2)}
    changed = installation.folder / "changed.yaml"
    changed.write_text(
        installation.file.read_text().replace("model: who.py", "model: who.py, env: [{name: ROUND, value: two}]")
    )
    async with make_load(delay_ms=20).running() as load:
        await load.flow()
        applied = await asyncio.to_thread(installation.run, "apply", "-f", str(changed), "--wait")
        await load.flow()
        after = {r["pid"] for r in await asyncio.to_thread(installation.wait_ready, 2)}
        await load.flow()
    assert applied.returncode == 0, applied.stderr
    assert not before & after
    assert load.failures == []


async def test_scaling_down_under_load_loses_no_request(installation: Any, make_load: Any) -> None:
    installation.write(installation.document(scaling="minReplicas: 4, maxReplicas: 4"))
    installation.up()
    installation.wait_ready(4)
    async with make_load(clients=8, delay_ms=30).running() as load:
        await load.flow()
        assert (await asyncio.to_thread(installation.run, "set", "who", "--replicas", "1")).returncode == 0
        await asyncio.to_thread(installation.wait_ready, 1)
        await load.flow()
    assert load.failures == []
