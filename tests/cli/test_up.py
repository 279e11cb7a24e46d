from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangram.cli import up
from tangram.cli.client import CommandError
from tangram.cli.up import UpOptions, prepare
from tangram.control.paths import StatePaths
from tangram.control.store import Store
from tangram.core.keys import Key
from tangram.node.processes import read_stat

Tangram = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def options(fakes: Any, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "digits.py").touch()
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fakes.model_document()))
    return {
        "file": tmp_path / "fleet.yaml",
        "listen": f"127.0.0.1:{free_port()}",
        "admin": f"localhost:{free_port()}",
        "state": tmp_path / "state",
        "workers": 2,
    }


def refused(options: dict[str, Any], **changes: Any) -> str:
    """The one line."""
    with pytest.raises(CommandError) as error:
        prepare(UpOptions(**options | changes))
    assert error.value.code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_with_nothing_in_the_way_the_supervisor_gets_what_was_said(options: dict[str, Any]) -> None:
    arguments = prepare(UpOptions(**options, log_json=True, no_fast_path=True, no_native=True))
    assert arguments == [
        *("--file", str(options["file"]), "--listen", options["listen"], "--admin", options["admin"]),
        *("--state", str(options["state"]), "--workers", "2", "--no-fast-path", "--no-native", "--log-json"),
    ]
    assert options["state"].stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "line 1"),
        ("{kind: Modell}", "kind: 'Modell'"),
        ("", "holds no documents"),
    ],
)
def test_a_bad_file(options: dict[str, Any], content: str | None, said: str) -> None:
    options["file"].unlink()
    if content is not None:
        options["file"].write_text(content)
    line = refused(options)
    assert line.startswith(str(options["file"]))
    assert said in line
    assert not options["state"].exists()


def test_a_model_whose_code_is_not_there(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "digits.py").unlink()
    assert f"Model digits: spec.runtime.model: there is no file {tmp_path / 'digits.py'}" in refused(options)


@pytest.mark.parametrize("flag", ["listen", "admin"])
def test_a_port_in_use(options: dict[str, Any], flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = refused(options, **{flag: f"127.0.0.1:{taken.getsockname()[1]}"})
    assert line.startswith(f"--{flag}: cannot listen on 127.0.0.1:")
    assert "Address already in use" in line


@pytest.mark.parametrize("address", ["8080", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", ":8080", "::1:80", "h:x"])
def test_an_address_that_is_none(options: dict[str, Any], address: str) -> None:
    assert f"{address!r} is not HOST:PORT" in refused(options, listen=address)


def test_one_address_for_both(options: dict[str, Any]) -> None:
    assert "different ports" in refused(options, admin=options["listen"])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "[::]"])
def test_the_gateway_is_not_open_to_others_by_accident(options: dict[str, Any], host: str) -> None:
    assert "--insecure-listen" in refused(options, listen=f"{host}:8080")


def test_where_tenants_have_keys_it_is_open_to_them(options: dict[str, Any]) -> None:
    options["listen"] = f"0.0.0.0:{free_port()}"
    tenant = "---\napiVersion: tangram.dev/v1alpha1\nkind: Tenant\nmetadata: {name: acme}\n"
    declared = Path(options["file"]).read_text()
    Path(options["file"]).write_text(declared + tenant)
    assert "no tenant has a key" in refused(options)
    Path(options["file"]).write_text(declared + tenant + f"spec: {{keys: [{{id: 0a0a0a0a, sha256: '{'0' * 64}'}}]}}\n")
    assert "--require-key" in prepare(UpOptions(**options))


def test_keys_that_were_made_before_count_too(options: dict[str, Any]) -> None:
    paths = StatePaths(options["state"])
    paths.root.mkdir()
    store = Store(paths.database)
    store.put_key(Key("0a0a0a0a", "acme", "0" * 64, 1.0))
    store.close()
    assert "--require-key" in prepare(UpOptions(**options | {"listen": f"0.0.0.0:{free_port()}"}))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls_cert": Path("c.pem")}, "belong together"),
        ({"tls_cert": Path("no-such.pem"), "tls_key": Path("no-such.key")}, "no-such.pem"),
    ],
)
def test_tls_files_that_are_of_no_use(options: dict[str, Any], given: dict[str, Any], told: str) -> None:
    assert told in refused(options, **given)


def test_unless_told_so(options: dict[str, Any]) -> None:
    assert prepare(UpOptions(**options | {"listen": f"0.0.0.0:{free_port()}"}, insecure_listen=True))


def test_a_state_directory_that_cannot_be_one(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    assert "is a file" in refused(options, state=tmp_path / "a-file")
    assert "is not writable" in refused(options, state=tmp_path / "a-file" / "below")
    assert "is not writable" in refused(options, state=Path("/proc/tangram"))


def test_a_state_directory_in_use(options: dict[str, Any]) -> None:
    prepare(UpOptions(**options))
    paths = StatePaths(options["state"])
    holder = os.open(paths.lock, os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert "is in use by a running `tangram up`; stop" in refused(options)
        me = read_stat(os.getpid())
        assert me is not None
        os.write(holder, f"{me.pid} {me.start_ticks}\n".encode())
        assert f"is in use by a running `tangram up` (pid {me.pid})" in refused(options)
    finally:
        os.close(holder)
    assert prepare(UpOptions(**options))


@pytest.fixture
def orphan(options: dict[str, Any]) -> Iterator[None]:
    """What a killed supervisor left: a process with this state's marker that holds the gateway's port."""
    program = (
        "import socket,sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(flush=True); s.accept()"
    )
    environment = os.environ | {"TANGRAM_STATE": str(options["state"]), "TANGRAM_ROLE": "worker-0"}
    port = options["listen"].rpartition(":")[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, port], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


@pytest.mark.integration
@pytest.mark.usefixtures("orphan")
def test_what_a_killed_supervisor_left_is_adopted_not_complained_of(options: dict[str, Any], tmp_path: Path) -> None:
    assert prepare(UpOptions(**options))
    assert "Address already in use" in refused(options, state=tmp_path / "other")


def test_the_command_says_one_line_and_exits_with_2(tangram: Tangram, options: dict[str, Any]) -> None:
    ran = tangram("up", "missing.yaml", "--state", str(options["state"]))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: missing.yaml: cannot be read")
    assert ran.err.count("\n") == 1
    assert tangram("up", str(options["file"]), "--workers", "0").code == 2


def test_up_becomes_the_supervisor(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: seen.append(arguments))
    up.up(UpOptions(**options))
    ((program, argv),) = seen
    assert argv[:3] == [program, "-m", "tangram.control.supervisor"]


def test_up_starts_light() -> None:
    """Nothing that the supervisor would not need is loaded before the command is known."""
    program = "import sys, tangram.cli.main, tangram.cli.up; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    for heavy in ("rich", "aiohttp", "numpy", "pydantic", "asyncio"):
        assert f"'{heavy}'" not in modules
