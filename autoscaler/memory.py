"""What is worth keeping of a `State` when the controller goes: as plain data on its way out, checked on its way in.

Kept are what a replica can do, how long starts take, the history of arrivals with its judged experts, and when bursts
came. Not kept is what describes a moment: windows, silences, what was wanted of late; after a restart nothing shrinks
before a full window is seen, however much is remembered.

Times are shifted to the new clock, so that phases of periods stay where they are and the gap is a gap without reports.
What another version wrote, or what no `keep` can have written, is refused as a whole: a controller then begins anew,
which is always safe.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from autoscaler import timer
from autoscaler.capacity import Learned, Memory
from autoscaler.drift import Watch
from autoscaler.forecast import EXPERTS, History
from autoscaler.starts import Starts
from autoscaler.state import State

VERSION = 2
_LONGEST_S = 7 * 86_400.0
"""What is older is not worth having."""
_MOST_SUMS = 8 * 4096
_MOST_ITEMS = 10_000


class Kept(NamedTuple):
    """The part of a State that outlives a controller."""

    learned: Learned
    starts: Starts
    history: History
    onsets: timer.Onsets
    carried: tuple[float, float] | None


def keep(state: State, now: float) -> dict[str, Any]:
    """What to keep, as JSON may have it."""
    learned = state.learned._replace(short=Memory(), in_flight=None, change=0.0, watch=Watch())
    history = state.history
    if state.marks:
        # Windows are not kept, so that running totals begin at 0 again: the bucket began as much before.
        total = state.marks[-1]
        history = history._replace(arrivals=history.arrivals - total.arrivals, covered=history.covered - total.covered)
    kept = Kept(learned, state.starts._replace(pending=()), history, state.onsets, state.carried)
    return {"version": VERSION, "now": now, "kept": _plain(kept)}


def recall(data: object, now: float, gone_s: float, *, same: bool = True) -> State:
    """The state to begin with at `now`, `gone_s` after `keep` was called, on whatever clock.

    Not `same`: the replicas are others than they were; what they could do and how long they took to start is dropped.
    Raises ValueError where the data cannot be used, saying why.
    """
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        raise ValueError("it was kept by another version")
    if not 0.0 <= gone_s <= _LONGEST_S:
        raise ValueError(f"it is {gone_s:.0f} s old")
    then = _read(float, data.get("now"))
    kept = _read(Kept, data.get("kept"))
    _check(kept)
    shift = now - gone_s - then
    history = kept.history
    fresh = State.initial(now)
    return fresh._replace(
        history=history._replace(
            ends=history.ends + shift, issued=tuple(f._replace(due=f.due + shift) for f in history.issued)
        ),
        onsets=tuple(at + shift for at in kept.onsets),
        rhythm=timer.rhythm(tuple(at + shift for at in kept.onsets)),
        learned=_shifted(kept.learned, shift) if same else fresh.learned,
        starts=kept.starts if same else fresh.starts,
        carried=(kept.carried[0], kept.carried[1] + shift) if same and kept.carried is not None else None,
    )


def _shifted(learned: Learned, shift: float) -> Learned:
    drifted, slowed = learned.drifted_at, learned.slowed_at
    return learned._replace(
        drifted_at=None if drifted is None else drifted + shift, slowed_at=None if slowed is None else slowed + shift
    )


def _check(kept: Kept) -> None:
    history, learned = kept.history, kept.learned
    if len(history.experts) != EXPERTS or any(len(rates) != EXPERTS for _, rates in history.open):
        raise ValueError("it names other experts")
    if len(history.sums) % 8 or not 8 <= len(history.sums) <= _MOST_SUMS or not 0 <= history.best < EXPERTS:
        raise ValueError("its history is damaged")
    if any(e.spread < 0.0 or e.loss < 0.0 or e.errors < 0 for e in history.experts) or max(history[1:3]) > 0.0:
        raise ValueError("its history is damaged")
    if min(learned.long) < 0.0 or (kept.starts.mean_s or 0.0) < 0.0 or kept.starts.deviation_s < 0.0:
        raise ValueError("what it learned is damaged")
    if list(kept.onsets) != sorted(set(kept.onsets)):
        raise ValueError("its bursts are damaged")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if hasattr(value, "_fields"):
        return {name: _plain(item) for name, item in zip(value._fields, value, strict=True)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(kind: Any, value: Any) -> Any:
    """The value as the kind says: NamedTuples from mappings with exactly their fields, tuples from lists."""
    if get_origin(kind) is UnionType:
        inner = next(k for k in get_args(kind) if k is not NoneType)
        return None if value is None else _read(inner, value)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or len(value) > _MOST_ITEMS:
            raise ValueError("a list is missing")
        if kinds[-1] is Ellipsis:
            return tuple(_read(kinds[0], item) for item in value)
        if len(value) != len(kinds):
            raise ValueError("a list has another length")
        return tuple(_read(k, item) for k, item in zip(kinds, value, strict=True))
    if hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        if not isinstance(value, Mapping) or value.keys() != set(kind._fields):
            raise ValueError(f"{kind.__name__} has other fields")
        return kind(**{name: _read(hints[name], value[name]) for name in kind._fields})
    if kind is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("bytes are damaged") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    if kind is int and value != int(value):
        raise ValueError(f"{value} is no whole number")
    return kind(value)
