"""What a controller does with its file and its term when it starts, and starts again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.wire import Snapshot
from tangram.control import main
from tangram.control.paths import FILE_MARKER, StatePaths, file_digest
from tangram.control.store import Store
from tangram.control.wire_server import WireServer
from tangram.node.local import LocalBackend
from tangram.spec import Documents, SpecError

MODEL = """
apiVersion: tangram.dev/v1alpha1
kind: Model
metadata: {name: %s}
spec:
  runtime: {model: m.py}
  slice: {memory: {request: 64Mi}}
"""


class Taker:
    """Stands for the Controller: keeps what it is given to take."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], list[str]]] = []

    def take(self, documents: Documents, *, remove: list[str], remove_tenants: list[str], ended: set[str]) -> None:
        self.taken.append(([m.name for m in documents.models], remove))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "tangram.db")
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(MODEL % "one" + "---" + MODEL % "two")
    return path


def apply(file: Path, store: Store) -> list[tuple[list[str], list[str]]]:
    taker: Any = Taker()
    main._apply_file(file, taker, store)
    return list(taker.taken)


def up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `tangram up` leaves the environment of the controllers that it starts."""
    monkeypatch.setenv(FILE_MARKER, file_digest(file))


def test_the_file_is_applied_once(file: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    up(file, monkeypatch)
    assert apply(file, store) == [(["one", "two"], [])]
    assert apply(file, store) == []


def test_a_second_up_with_another_file_removes_what_only_the_first_declared(
    file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(file, monkeypatch)
    apply(file, store)
    file.write_text(MODEL % "two" + "---" + MODEL % "three")
    up(file, monkeypatch)
    assert apply(file, store) == [(["two", "three"], ["one"])]


@pytest.mark.parametrize("text", ["kind: [broken", MODEL % "three", None])
def test_a_file_changed_since_up_is_left_alone_by_a_controller_started_again(
    text: str | None, file: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    up(file, monkeypatch)
    apply(file, store)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert apply(file, store) == []
    assert "was changed since `tangram up`" in caplog.text


def test_a_first_start_says_what_is_wrong_with_the_file(
    file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(file, monkeypatch)
    file.write_text("kind: [broken")
    with pytest.raises(SpecError, match=r"fleet\.yaml: line"):
        apply(file, store)
    file.unlink()
    with pytest.raises(main.Unusable, match="cannot be read"):
        apply(file, store)


def test_a_new_database_begins_after_the_terms_that_the_workers_know(store: Store, tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    assert main._term_in_use(paths, 3) == 0
    paths.table_cache(0).write_text("{not a table")
    paths.table_cache(1).write_text(Snapshot(term=41, number=3, models=()).model_dump_json())
    assert store.next_term(above=main._term_in_use(paths, 3)) == 42
    assert store.next_term(above=main._term_in_use(paths, 3)) == 43


async def test_our_own_logs_are_rotated(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    for role in ("controller", "worker-0"):
        with paths.log(role).open("wb") as file:
            file.truncate(11_000_000)
    wire = WireServer(1, 2, lambda _: None, lambda _: None, lambda *_: None)
    await wire.start(paths.wire)
    keeping = asyncio.create_task(main._keep_house(paths, 2, wire))
    async with asyncio.timeout(20):
        while any(paths.log(r).stat().st_size for r in ("controller", "worker-0")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    await wire.close()
    assert paths.log("controller").with_name("controller.log.1").exists()


def test_no_replica_writes_to_a_log_of_ours(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path)
    replica = LocalBackend(tmp_path, on_change=lambda _: None).log_path("worker-1")
    assert replica.parent == paths.logs
    assert paths.log("worker-1") != replica
