"""What the workers of one machine count together, in memory that all of them map.

A worker claims a *row* and writes to no other; it reads all. So there is no lock on the path of a request, and no
worker can be held up by another. The memory is made of unsigned 64-bit cells: a header, then the rows.

    header     cell 0: layout, and boot of the machine
               cell 1: rows in use, from the first one up
               cells ROWS to 2 * ROWS - 1: 1 for a row that was claimed and not cleared since
    row        a column for each slot, of each kind in turn:
      HELD         requests in flight, by the slot of the endpoint or tenant's limit
      SPENT        tokens taken so far, by the slot of the tenant's limit
      FULL_AT      when the bucket of that limit will be full again, as far as the worker knew when it last took from it
      QUEUED       requests that wait, by the slot of the model; the last column: of all models
      QUEUED_BYTES what those hold in memory

Who takes a place writes that down first, then passes a *fence*, then reads what the others hold. Of two workers that do
so at once at least one sees the other, however their steps interleave. A new row is made known (cell 1) before anything
is written to it, so the same holds for a worker that has just come.

What a worker wrote without a fence is seen by the others a moment later, long before it writes there again: thousands
of its stores lie between two requests, and no processor holds back a hundred. So without a fence a count is short by
one for each other worker at most, and who finds it further than that from a limit (`Counts.blur`) needs none.

A row is cleared when its worker leaves, or by whoever finds that it has died (see `gateway.rows`). What was taken from
buckets stays taken: only differences of SPENT are looked at, and the latest FULL_AT of all. Times are nanoseconds of
the machine's monotonic clock; what was counted before the machine was started is forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

#: Most workers that can count together, those included that leave while their successors are there already.
ROWS: Final = 64
#: Slots of a kind. Slots that are equal modulo this share a column: what is bounded there is so at worst too early.
COLUMNS: Final = 4096
#: Slot of QUEUED and QUEUED_BYTES for all models together.
ALL_MODELS: Final = COLUMNS - 1

HELD: Final = 0
SPENT: Final = COLUMNS
FULL_AT: Final = 2 * COLUMNS
QUEUED: Final = 3 * COLUMNS
QUEUED_BYTES: Final = 4 * COLUMNS
_ROW: Final = 5 * COLUMNS

_LAYOUT: Final = 1
_IN_USE: Final = 1
_CLAIMED: Final = ROWS
_HEADER: Final = 2 * ROWS
_CELL_BYTES: Final = 8
#: A format of that size; Python takes half as long to store by "L" as by "Q", which is the same.
_CELL: Final = "L" if struct.calcsize("L") == _CELL_BYTES else "Q"

#: Bytes of the memory.
SIZE: Final = (_HEADER + ROWS * _ROW) * _CELL_BYTES

_NOTHING: Final = memoryview(bytes(COLUMNS * _CELL_BYTES)).cast(_CELL)


def cells(memory: memoryview) -> memoryview:
    """The memory by cells. Raises ValueError where there is too little of it."""
    if len(memory) < SIZE:
        raise ValueError(f"the shared memory has {len(memory)} bytes; {SIZE} are needed")
    return memory[:SIZE].cast(_CELL)


def prepare(all_cells: memoryview, boot: int) -> None:
    """Make memory into one where nothing is counted, unless it is that of this layout and `boot` of the machine (32
    bits); for who alone uses it.
    """
    mark = _LAYOUT << 32 | boot & 0xFFFF_FFFF
    if all_cells[0] != mark:
        for begin in range(0, len(all_cells), COLUMNS):
            all_cells[begin : begin + COLUMNS] = _NOTHING[: len(all_cells) - begin]
        all_cells[0] = mark


def open_row(all_cells: memoryview, row: int) -> None:
    """Make a row known that nobody else writes to; for who alone may claim rows at this moment."""
    clear(all_cells, row)
    all_cells[_CLAIMED + row] = 1
    all_cells[_IN_USE] = max(all_cells[_IN_USE], row + 1)


def clear(all_cells: memoryview, row: int) -> None:
    """Forget what a row counts, whose worker has ended or is the caller."""
    begin = _HEADER + row * _ROW
    for kind in (HELD, QUEUED, QUEUED_BYTES):
        all_cells[begin + kind : begin + kind + COLUMNS] = _NOTHING
    all_cells[_CLAIMED + row] = 0


def uncleared(all_cells: memoryview) -> list[int]:
    """Rows that were claimed and not cleared since."""
    return [row for row in range(all_cells[_IN_USE]) if all_cells[_CLAIMED + row]]


class Counts:
    """The memory as the worker of one row uses it. `fence` must order the stores before it before the loads after it,
    as other processors see them.

    A place in a row is a kind and a column: `HELD + slot % COLUMNS`. What each request changes is also kept in lists,
    which take less to read than memory does.
    """

    __slots__ = (
        "_cells",
        "_full_at",
        "_held",
        "_own_full_at",
        "_own_held",
        "_own_spent",
        "_row",
        "_spent",
        "_their_full_at",
        "_their_held",
        "_their_spent",
        "_used",
        "blur",
        "fence",
        "own",
    )

    def __init__(self, all_cells: memoryview, row: int, fence: Callable[[], None]) -> None:
        self._cells = all_cells
        self._row = row
        self.own = self._view(row, 0, _ROW)
        """The own row."""
        self._own_held = self._view(row, HELD)
        self._own_spent = self._view(row, SPENT)
        self._own_full_at = self._view(row, FULL_AT)
        self._held = [self._own_held[column] for column in range(COLUMNS)]
        self._spent = [self._own_spent[column] for column in range(COLUMNS)]
        self._full_at = [self._own_full_at[column] for column in range(COLUMNS)]
        self._their_held: list[memoryview] = []
        self._their_spent: list[memoryview] = []
        self._their_full_at: list[memoryview] = []
        self._used = 0
        self.blur = 0
        """More than what was written without a fence and not seen when others were last asked for: by them of this
        worker and by this worker of them."""
        self.fence = fence
        self.meet()

    def _view(self, row: int, kind: int, columns: int = COLUMNS) -> memoryview:
        begin = _HEADER + row * _ROW + kind
        return self._cells[begin : begin + columns]

    def leave(self) -> None:
        """What is counted from now on counts for nobody: the row is another's."""
        self.own = memoryview(bytearray(_ROW * _CELL_BYTES)).cast(_CELL)
        self._own_held = self.own[HELD : HELD + COLUMNS]
        self._own_spent = self.own[SPENT : SPENT + COLUMNS]
        self._own_full_at = self.own[FULL_AT : FULL_AT + COLUMNS]

    def meet(self) -> None:
        """Look for rows that have come into use."""
        used = self._cells[_IN_USE]
        if used == self._used:
            return
        self._used = used
        self.blur = 2 * used
        rows = [row for row in range(used) if row != self._row]
        self._their_held = [self._view(row, HELD) for row in rows]
        self._their_spent = [self._view(row, SPENT) for row in rows]
        self._their_full_at = [self._view(row, FULL_AT) for row in rows]

    # --- in flight ---

    def hold(self, column: int, step: int) -> int:
        """Count so many requests in flight more; how many there are now of this worker."""
        held = self._held[column] + step
        self._own_held[column] = held
        self._held[column] = held
        return held

    def held_elsewhere(self, column: int) -> int:
        """What all other workers have in flight, now."""
        self.meet()
        return self.held_by_known(column)

    def held_by_known(self, column: int) -> int:
        """What those have that were there when all were last looked at: enough for a choice, not for a limit."""
        count = 0
        for held in self._their_held:
            count += held[column]
        return count

    # --- tokens ---

    def spend(self, column: int, full_at_ns: int) -> None:
        """Count a token as taken, from a bucket that will be full again at this time."""
        spent = self._spent[column] + 1
        self._own_spent[column] = spent
        self._spent[column] = spent
        self._own_full_at[column] = full_at_ns
        self._full_at[column] = full_at_ns

    def spent_elsewhere(self, column: int) -> int:
        """What all other workers have taken, now."""
        self.meet()
        count = 0
        for spent in self._their_spent:
            count += spent[column]
        return count

    def full_at_ns(self, column: int) -> int:
        """When the bucket will be full again, as far as any worker knew that `spent_elsewhere` saw; nanoseconds."""
        latest = self._full_at[column]
        for row in self._their_full_at:
            full_at = row[column]
            if full_at > latest:
                latest = full_at
        return latest

    # --- all else ---

    def add(self, place: int, step: int) -> None:
        """Count up or down in the own row; not what the lists have."""
        self.own[place] += step

    def others(self, place: int) -> int:
        """What all other workers count, now."""
        rows = range(self._cells[_IN_USE])
        return sum(self._cells[_HEADER + row * _ROW + place] for row in rows if row != self._row)
