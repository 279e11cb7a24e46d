"""Rows of the shared memory, and processes that die while they hold one."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import counts
from gateway.limits import Limited, Limits
from gateway.rows import Rows, TooManyWorkers


def place_of(slot: int = 7, concurrency: int = 1) -> Limited:
    return Limited(slot, concurrency)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.shm"


HOLDER = """
import sys, time
from pathlib import Path
from gateway.limits import Limited, Limits, Queue
from gateway.rows import Rows
rows = Rows(Path(sys.argv[1]))
limits = Limits(rows.counts())
assert limits.acquire(Limited(7, 1))
limits.tell(Queue(), 2, 3, 400)
print(rows.row, flush=True)
time.sleep(600)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the place of slot 7, and its row."""
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)


def test_each_worker_has_a_row_and_all_count_together(path):
    one, two = Rows(path), Rows(path)
    assert one.row != two.row
    first, second = Limits(one.counts()), Limits(two.counts())
    place = place_of()
    assert first.acquire(place)
    assert not second.acquire(place_of())
    first.release(place)
    assert second.acquire(place_of())


def test_a_worker_that_leaves_clears_its_row_and_another_takes_it(path):
    one, two = Rows(path), Rows(path)
    assert Limits(one.counts()).acquire(place_of())
    left = one.row
    one.close()
    limits = Limits(two.counts())
    place = place_of()
    assert limits.acquire(place)
    limits.release(place)
    assert Rows(path).row == left


def test_a_successor_has_a_row_of_its_own_while_its_predecessor_leaves(path):
    leaving = Rows(path)
    held = place_of(concurrency=2)
    limits = Limits(leaving.counts())
    assert limits.acquire(held)
    successor = Limits(Rows(path).counts())
    assert successor.load(place_of()) == 1
    limits.release(held)
    assert successor.load(place_of()) == 0


def test_what_a_worker_releases_after_it_left_is_no_longer_its_row(path):
    leaving, other = Rows(path), Rows(path)
    limits, others = Limits(leaving.counts()), Limits(other.counts())
    held, place = place_of(concurrency=3), place_of(concurrency=3)
    assert limits.acquire(held)
    assert limits.acquire(held)
    leaving.close()
    limits.release(held)
    assert [others.acquire(place) for _ in range(4)] == [True, True, True, False]


def test_the_load_of_a_worker_that_came_later_is_known_once_somebody_looks(path):
    rows = Rows(path)
    limits = Limits(rows.counts())
    later = Limits(Rows(path).counts())
    assert later.acquire(place_of())
    rows.bury()
    assert limits.load(place_of()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_worker_held_is_free_once_somebody_looks(path, number):
    with holder(path) as process:
        assert process.stdout is not None
        row = int(process.stdout.readline())
        rows = Rows(path)
        limits = Limits(rows.counts())
        assert not limits.acquire(place_of())
        assert limits.queued_elsewhere(2) == (3, 400)
        # It lives, however long it does nothing.
        process.send_signal(signal.SIGSTOP)
        assert rows.bury() == []
        assert not limits.acquire(place_of())
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        process.wait()
        assert rows.bury() == [row]
        assert limits.acquire(place_of())
        assert limits.queued_elsewhere(2) == (0, 0)
        assert rows.bury() == []


def test_what_was_taken_of_a_bucket_stays_taken_when_the_worker_is_gone(path):
    one, two = Rows(path), Rows(path)
    bucket = Limits(one.counts()).bucket(1.0, 2.0, 3)
    bucket.take(10.0)
    bucket.take(10.0)
    one.close()
    assert Limits(two.counts()).bucket(1.0, 2.0, 3).wait_s(10.0) == pytest.approx(1.0)
    successor = Rows(path)
    assert Limits(successor.counts()).bucket(1.0, 2.0, 3).wait_s(10.0) == pytest.approx(1.0)


def test_memory_of_another_boot_is_forgotten(path, monkeypatch, tmp_path):
    rows = Rows(path)
    assert Limits(rows.counts()).acquire(place_of())
    Limits(rows.counts()).bucket(1.0, 1.0, 3).take(1e9)
    boot = tmp_path / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr("gateway.rows._BOOT", boot)
    after = Limits(Rows(path).counts())
    assert after.acquire(place_of())
    assert after.bucket(1.0, 1.0, 3).wait_s(1.0) == 0


def test_a_file_that_is_something_else_is_made_into_one(path):
    path.write_bytes(b"\xff" * 100)
    assert Limits(Rows(path).counts()).acquire(place_of())


def test_there_are_rows_for_so_many_workers_and_no_more(path):
    held = [Rows(path) for _ in range(counts.ROWS)]
    assert sorted(r.row for r in held) == list(range(counts.ROWS))
    with pytest.raises(TooManyWorkers, match="64"):
        Rows(path)
    held[5].close()
    assert Rows(path).row == 5


def test_a_folder_that_is_not_there_is_said(path):
    with pytest.raises(OSError) as caught:
        Rows(path / "no" / "such")
    assert caught.value.errno == errno.ENOENT


def test_too_little_memory_is_said():
    with pytest.raises(ValueError, match=str(counts.SIZE)):
        counts.cells(memoryview(bytearray(8)))
