"""Keys as an operator uses them: made, used, rotated and revoked while everything runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TENANT = """
---
apiVersion: tangram.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec: {limits: {requestsPerSecond: 1000}, models: [who]}
"""


def infer(installation: Any, key: str | None, scheme: str = "http", context: ssl.SSLContext | None = None) -> int:
    body = {"inputs": [{"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [0]}]}
    request = urllib.request.Request(
        f"{scheme}://localhost:{installation.gateway_port}/v2/models/who/infer",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}"} if key else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("workers", [1, 2])
def test_keys_are_rotated_without_a_restart(installation: Any, workers: int) -> None:
    installation.workers = workers
    installation.write(installation.document(scaling="replicas: 1, maxReplicas: 1"), TENANT)
    installation.up()
    installation.wait_ready(1)
    assert infer(installation, None) == 401

    first = installation.run("key", "create", "acme").stdout.strip()
    assert re.fullmatch(r"tgm_[0-9a-f]{8}_[\w-]{43}", first)
    installation.wait_for(lambda: infer(installation, first) == 200, 5, "the key works")
    second = installation.run("key", "create", "acme").stdout.strip()
    installation.wait_for(lambda: infer(installation, second) == 200, 5, "the second key works")
    listed = installation.run("key", "list").stdout
    assert first.split("_")[1] in listed and first.split("_", 2)[2] not in listed

    assert installation.run("key", "revoke", first.split("_")[1]).returncode == 0
    installation.wait_for(lambda: infer(installation, first) == 401, 5, "the revoked key is void")
    assert infer(installation, second) == 200
    page = urllib.request.urlopen(f"http://127.0.0.1:{installation.admin_port}/metrics", timeout=5).read().decode()
    assert re.search(r'gateway_tenant_requests_total\{[^}]*tenant="acme"', page)

    # Nothing on disk or in a log holds a key.
    for file in installation.state.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert first.encode() not in content and second.encode() not in content, file


def test_what_a_tenant_used_is_known_after_workers_and_the_controller_were_killed(installation: Any) -> None:
    installation.workers = 2
    installation.write(installation.document(scaling="replicas: 1, maxReplicas: 1"), TENANT)
    installation.up()
    installation.wait_ready(1)
    key = installation.run("key", "create", "acme").stdout.strip()
    installation.wait_for(lambda: infer(installation, key) == 200, 5, "the key works")

    def used() -> int:
        tenants = installation.items("/tenants")
        return int(tenants[0]["usage"]["requests"]) if tenants else 0

    def use(count: int) -> None:
        before = used()
        assert {infer(installation, key) for _ in range(count)} == {200}
        installation.wait_for(lambda: used() == before + count, 10, "all of it is reported")

    installation.wait_for(lambda: used() >= 1, 10, "the first is reported")
    begin = used()
    use(12)
    for role in ("worker-0", "controller", "worker-1"):
        victim = installation.pid(role)
        os.kill(victim, signal.SIGKILL)
        installation.wait_for(lambda: installation.pid(role) != victim, 20, f"{role} is back")  # noqa: B023
        installation.wait_ready(1)
        use(8)
    # A worker that leaves says what it finished last.
    for _ in range(5):
        assert infer(installation, key) == 200
    leaving = [installation.pid(f"worker-{n}") for n in range(2)]
    for pid in leaving:
        os.kill(pid, signal.SIGTERM)
    expected = begin + 12 + 3 * 8 + 5
    installation.wait_for(lambda: used() == expected, 20, f"{expected} requests", lambda: f"there are {used()}")
    shown = installation.run("get", "tenants").stdout
    assert f" {expected} " in shown


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command to make a certificate")
def test_up_serves_tls(installation: Any) -> None:
    installation.write(installation.document(scaling="replicas: 1, maxReplicas: 1"))
    certificate, key = installation.folder / "cert.pem", installation.folder / "key.pem"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", "req", "-x509", *kind.split(), "-subj", "/CN=t", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    installation.up("--tls-cert", str(certificate), "--tls-key", str(key))
    installation.wait_ready(1)
    context = ssl.create_default_context(cafile=str(certificate))
    assert infer(installation, None, "https", context) == 200
    assert installation.get("/status")["gateway"].startswith("https://")
