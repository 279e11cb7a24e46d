"""Workers that share memory, within one process: as they are, and stopped at each of their steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from gateway import counts
from gateway.counts import Counts
from gateway.limits import Limits


def memory(workers: int) -> memoryview:
    """Cells in which so many workers have a row."""
    made = counts.cells(memoryview(bytearray(counts.SIZE)))
    for row in range(workers):
        counts.open_row(made, row)
    return made


def share(workers: int) -> list[Limits]:
    """The limits of so many workers."""
    cells = memory(workers)
    return [Limits(Counts(cells, row, lambda: None)) for row in range(workers)]


class Killed(BaseException):
    """The worker's process was ended where it stood."""


class Machine:
    """Processors that run one worker each, one step (a load or a store) at a time, in the order of a schedule.

    A store is seen by others when the processor gets to it: at a fence, or when the schedule says so.
    """

    def __init__(self, workers: int) -> None:
        self.cells = memory(workers)
        self.buffers: list[list[tuple[int, int]]] = [[] for _ in range(workers)]
        self._running = False
        self.limits = [Limits(Counts(_Seen(self, w), w, lambda w=w: self.flush(w))) for w in range(workers)]
        self._turns = [threading.Semaphore(0) for _ in range(workers)]
        self._back = threading.Semaphore(0)
        self._ended = [False] * workers
        self._killed = [False] * workers
        self._errors: list[BaseException] = []

    def flush(self, worker: int, most: int | None = None) -> None:
        buffer = self.buffers[worker]
        for index, value in buffer[:most]:
            self.cells[index] = value
        del buffer[:most]

    def step(self, worker: int) -> None:
        if not self._running:
            return
        self._back.release()
        self._turns[worker].acquire()
        if self._killed[worker]:
            raise Killed

    def run(self, programs: Sequence[Callable[[], None]], schedule: Sequence[tuple[int, str]]) -> None:
        """Run all to their end; the schedule says who goes on ("step"), whose oldest store is seen ("flush"), and who
        dies ("kill")."""
        threads = [threading.Thread(target=self._body, args=(w, p), daemon=True) for w, p in enumerate(programs)]
        self._running = True
        for thread in threads:
            thread.start()
        for worker, what in schedule:
            worker %= len(programs)
            if what == "flush":
                self.flush(worker, 1)
            elif not self._ended[worker]:
                self._killed[worker] |= what == "kill"
                self._go_on(worker)
        for worker in range(len(programs)):
            while not self._ended[worker]:
                self._go_on(worker)
        for thread in threads:
            thread.join()
        self._running = False
        for worker, killed in enumerate(self._killed):
            if killed:
                # What a dead process had stored is seen; then its row is cleared.
                self.flush(worker)
                counts.clear(self.cells, worker)
        for worker in range(len(programs)):
            self.flush(worker)
        if self._errors:
            raise self._errors[0]

    def _go_on(self, worker: int) -> None:
        self._turns[worker].release()
        self._back.acquire()

    def _body(self, worker: int, program: Callable[[], None]) -> None:
        self._turns[worker].acquire()
        try:
            if not self._killed[worker]:
                program()
        except Killed:
            pass
        except BaseException as error:
            self._errors.append(error)
        self._ended[worker] = True
        self._back.release()


class _Seen:
    """The memory as one processor sees it."""

    def __init__(self, machine: Machine, worker: int, offset: int = 0) -> None:
        self._machine, self._worker, self._offset = machine, worker, offset

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Seen(self._machine, self._worker, self._offset + index.start)
        self._machine.step(self._worker)
        place = self._offset + index
        own = [value for at, value in self._machine.buffers[self._worker] if at == place]
        return own[-1] if own else self._machine.cells[place]

    def __setitem__(self, index: int, value: int) -> None:
        self._machine.step(self._worker)
        self._machine.buffers[self._worker].append((self._offset + index, value))
