"""Runs a model's code: one thread, one call at a time, in order of arrival, each started within the CPU budget.

Waiting is done in the event loop, so a request whose client leaves gives up its turn at once; a call that has already
started cannot be stopped and runs to its end unheard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from tangram.node.runtimes.embedded.budget import LOOK_S, CoresFile, CpuBudget

P = ParamSpec("P")
T = TypeVar("T")

_END: Final = object()


class Worker:
    """The thread beside the event loop in which the model lives."""

    def __init__(self, cores: float | None, file: CoresFile | None = None) -> None:
        """`file` tells of other cores than the ones to begin with."""
        self._cores = cores
        self._file = file
        self._budget: CpuBudget | None = None
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def start_budget(self) -> None:
        """Hold calls to the budget from now on; what was used before (imports, loading) is not charged."""
        if self._cores is not None:
            self._budget = CpuBudget(self._cores, now=time.monotonic(), cpu=time.process_time())

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the model's thread when its turn has come; its result or exception."""
        async with self._turn:
            while self._budget is not None:
                now, cpu = time.monotonic(), time.process_time()
                if self._file is not None and (cores := self._file.changed(now)) is not None:
                    self._budget.resize(cores, now, cpu)
                delay = self._budget.delay(now, cpu)
                if delay <= 0:
                    break
                await asyncio.sleep(delay if self._file is None else min(delay, LOOK_S))
            return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))

    async def iterate(self, make: Callable[[], Iterator[str]]) -> AsyncGenerator[str, None]:
        """Draw from an iterator, each step a call of its own, so that several streams advance side by side."""
        iterator = await self.call(make)
        try:
            while isinstance(piece := await self.call(next, iterator, _END), str):
                yield piece
            if piece is not _END:
                raise TypeError(f"generate() yielded {type(piece).__name__}, not str")
        finally:
            if close := getattr(iterator, "close", None):
                self._thread.submit(close)
