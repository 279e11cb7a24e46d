"""What was learned of each model, on record from time to time, for a controller that is started again."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from typing import Final

from autoscaler import memory
from tangram.control.state import ControllerState, ModelState, fresh_policy_state
from tangram.control.store import Store, StoredMemory

log = logging.getLogger("tangram.loop")

#: Each model's memory is put on record this often; the models take turns.
EVERY_S: Final = 60.0
_LONGEST_START_S: Final = 86_400.0


class Memories:
    """Puts memories on record."""

    def __init__(self, state: ControllerState, store: Store) -> None:
        self._state = state
        self._store = store
        self._kept: dict[str, float] = {}

    def keep_due(self, now: float, monotonic: float) -> None:
        """Of the models whose turn it is; called every second. Raises sqlite3.Error."""
        for name in self._kept.keys() - self._state.models.keys():
            del self._kept[name]
        turn = [n for n in self._state.models if now - self._kept.get(n, 0.0) >= EVERY_S]
        share = -(-len(self._state.models) // int(EVERY_S))
        self._keep(turn[:share], now, monotonic)

    def keep_all(self, now: float, monotonic: float) -> None:
        """Of every model, at the end."""
        try:
            self._keep(list(self._state.models), now, monotonic)
        except sqlite3.Error as error:
            log.warning("what was learned of late cannot be recorded: %s", error)

    def _keep(self, names: list[str], now: float, monotonic: float) -> None:
        if not names:
            return
        with self._store.transaction():
            for name in names:
                entry = self._state.models[name]
                record = json.dumps(
                    {"policy": memory.keep(entry.policy_state, monotonic), "starts": list(entry.start_times_s)}
                )
                self._store.put_memory(name, StoredMemory(entry.model.revision, now, record))
        self._kept.update(dict.fromkeys(names, now))


def recall(entry: ModelState, kept: StoredMemory | None, now: float, monotonic: float) -> None:
    """Begin with what was kept of the model; where that cannot be used, with nothing."""
    name = entry.model.name
    entry.policy_state = fresh_policy_state(name, monotonic)
    if kept is None:
        return
    same = kept.revision == entry.model.revision
    try:
        record = json.loads(kept.record)
        if not isinstance(record, Mapping):
            raise ValueError("it is no object")
        state = memory.recall(record.get("policy"), monotonic, max(0.0, now - kept.at), same=same)
        starts = record.get("starts")
        if not isinstance(starts, list) or not all(_is_time(s) for s in starts):
            raise ValueError("its start times are damaged")
    except (ValueError, RecursionError) as error:
        log.warning("what was learned of %s is not used: %s", name, error)
        return
    entry.policy_state = state
    if same:
        entry.start_times_s.extend(float(s) for s in starts)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= _LONGEST_START_S
