from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangram.cli.client import Client, CommandError, NotRunning, can_listen, connect, reachable

Tangram = Callable[..., Any]


def test_without_an_installation_it_is_said_in_a_line(tangram: Tangram, tmp_path: Path) -> None:
    ran = tangram("get", "models")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    assert str(tmp_path / ".tangram") in ran.err
    assert "tangram up" in ran.err


def test_a_controller_that_is_gone_is_said_in_a_line(tangram: Tangram, running: str, unused_tcp_port: int) -> None:
    ran = tangram("get", "models", "--admin", f"127.0.0.1:{unused_tcp_port}")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "Connection refused" in ran.err


def test_options_win_over_the_environment_and_that_over_files(
    tangram: Tangram, running: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    state = tmp_path / ".tangram"
    assert tangram("status").code == 1
    assert tangram("status", "--state", str(state)).code == 0
    monkeypatch.setenv("TANGRAM_STATE_DIR", str(state))
    assert tangram("status").code == 0
    monkeypatch.setenv("TANGRAM_ADMIN", "127.0.0.1:1")
    assert tangram("status").code == 1
    assert tangram("status", "--admin", running).code == 0
    monkeypatch.setenv("TANGRAM_TOKEN", "wrong")
    ran = tangram("status", "--admin", running)
    assert ran.code == 1
    assert "TANGRAM_TOKEN" in ran.err
    monkeypatch.setenv("TANGRAM_STATE_DIR", "/nowhere")
    monkeypatch.setenv("TANGRAM_TOKEN", (state / "admin.token").read_text().strip())
    assert tangram("status", "--admin", running).code == 0


@pytest.mark.parametrize(
    "admin", ["8081", "localhost", "ftp://x:1", "http://x:99999", "http://x:1/path", "", "http://"]
)
def test_an_address_that_is_none_is_bad_usage(admin: str) -> None:
    with pytest.raises(CommandError, match="--admin") as error:
        Client(admin, None)
    assert error.value.code == 2


def test_broken_endpoints_are_no_endpoints(tmp_path: Path) -> None:
    for content in ("", "[]", "{", json.dumps({"admin": 3})):
        (tmp_path / "endpoints.json").write_text(content)
        with pytest.raises(NotRunning, match="nothing runs on"):
            connect(tmp_path)


def test_something_else_on_the_port_is_not_taken_for_the_api() -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"SSH-2.0-x\r\n", b""]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = Client(f"127.0.0.1:{server.getsockname()[1]}", None)
        for _ in answers:
            with pytest.raises(CommandError, match=r"is not Tangram's admin API|does not answer"):
                client.get("/status")
        thread.join(10)


def test_a_port_in_use_is_found_out_with_reuseport_too() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert can_listen("127.0.0.1", port) == "Address already in use"
    assert can_listen("127.0.0.1", port) is None
    assert can_listen("192.0.2.1", port)


def test_wildcards_are_reached_over_loopback() -> None:
    assert reachable("http://0.0.0.0:8080") == "http://127.0.0.1:8080"
    assert reachable("http://[::]:8080") == "http://[::1]:8080"
    assert reachable("http://10.0.0.1:8080") == "http://10.0.0.1:8080"
