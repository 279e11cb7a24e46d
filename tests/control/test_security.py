from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tangram.control.security import Guard, TokenError, is_loopback, load_token, read_token

API = "/api/v1alpha1/models"


def ask(
    guard: Guard, path: str = API, host: str = "localhost", token: str | None = "secret", remote: str = "127.0.0.1"
):
    refusal = guard.check(path, hosts=[host], authorization=[] if token is None else [f"Bearer {token}"], remote=remote)
    return refusal.status if refusal else 200


def test_a_token_is_made_once_private_and_kept(tmp_path: Path) -> None:
    token = load_token(tmp_path)
    assert len(token) >= 40
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600
    assert load_token(tmp_path) == token == read_token(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["admin.token"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606])
def test_a_token_that_others_could_read_is_replaced(tmp_path: Path, mode: int) -> None:
    first = load_token(tmp_path)
    (tmp_path / "admin.token").chmod(mode)
    assert load_token(tmp_path) != first
    assert stat.S_IMODE((tmp_path / "admin.token").stat().st_mode) == 0o600


def test_an_empty_token_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "admin.token").touch(mode=0o600)
    assert read_token(tmp_path) is None
    assert load_token(tmp_path)


def test_a_token_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TokenError, match=r"file/admin\.token: cannot be"):
        load_token(tmp_path / "file")


def test_only_the_token_opens_the_api() -> None:
    guard = Guard("secret")
    assert ask(guard) == 200
    assert ask(guard, token=None) == 401
    assert ask(guard, token="secre") == 401
    assert ask(guard, token="secret\udcff") == 401
    assert guard.check(API, hosts=["localhost"], authorization=["Basic secret"], remote=None) is not None
    assert guard.check(API, hosts=["localhost"], authorization=["Bearer secret"] * 2, remote=None) is not None
    assert guard.check(API, hosts=["localhost"], authorization=["bearer  secret "], remote=None) is None


def test_an_empty_token_never_guards() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        Guard("")


def test_probes_need_no_token_and_metrics_only_from_afar() -> None:
    guard = Guard("secret")
    assert [ask(guard, path, token=None) for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
    assert ask(guard, "/metrics", token=None, remote="192.0.2.7") == 401
    assert ask(guard, "/metrics", remote="192.0.2.7") == 200
    assert ask(guard, "/healthz/", token=None) == 401
    assert ask(guard, "/openapi.json", token=None) == 401


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "127.1.2.3", "[::1]:8081", "localhost.", "[::ffff:127.0.0.1]"],
)
def test_loopback_is_always_a_host(host: str) -> None:
    assert ask(Guard("secret"), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.7",
        "",
        "localhost:",
        "a b",
        "x@localhost",
        "[::1",
        "\udcff",
    ],
)
def test_rebound_names_and_foreign_addresses_are_refused_even_for_probes(host: str) -> None:
    assert ask(Guard("secret"), host=host) == 403
    assert ask(Guard("secret"), "/metrics", host=host, token=None) == 403


def test_bound_addresses_are_hosts() -> None:
    guard = Guard("secret", ["192.0.2.7", "Tangram.internal", "2001:DB8::1"])
    assert [ask(guard, host=h) for h in ("192.0.2.7:8081", "tangram.internal", "[2001:db8:0::1]:1")] == [200, 200, 200]
    assert ask(guard, host="192.0.2.8") == 403


def test_a_wildcard_allows_addresses_and_no_names() -> None:
    guard = Guard("secret", ["0.0.0.0"])
    assert ask(guard, host="192.0.2.7:8081") == 200
    assert ask(guard, host="evil.example") == 403


def test_a_host_missing_or_given_twice_is_malformed() -> None:
    guard = Guard("secret")
    for hosts in ([], ["localhost", "localhost"]):
        refusal = guard.check(API, hosts=hosts, authorization=["Bearer secret"], remote=None)
        assert refusal is not None
        assert refusal.status == 400


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("192.0.2.7", "::", "localhost", "", None, "::ffff:192.0.2.7")))
