"""Windows of time with bounds of their own: each opens and closes by a cron expression, as in KEDA's cron scaler.

A window is open when it was last opened later than it was last closed. Its bounds take the place of the policy's; of
several open windows the greatest min and the least max hold, and a max never lies below the min. A window that opens
before a replica started now would be ready counts with its min already, so that what it asks for is there in time.

Cron expressions have the five fields of crontab(5): minute, hour, day of month, month, day of week; `*`, numbers,
names (jan, mon), ranges, lists and steps. Where both days are restricted, either one is enough, as in Vixie cron.
Times are those of the schedule's own zone; what falls into the hour that a change to summer time leaves out is found
at the same time by the zone's clock, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from autoscaler.types import Schedule

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_FARTHEST_DAYS = 4 * 366 * 2
"""A 29th of February is at most 8 years away."""


class Cron(NamedTuple):
    """A cron expression, read."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    any_day: bool
    any_weekday: bool

    def is_day(self, day: date) -> bool:
        """Whether it fires at all on this day."""
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return in_month and in_week if self.any_day or self.any_weekday else in_month or in_week


@lru_cache(maxsize=1024)
def parse(expression: str) -> Cron:
    """The expression, read; ValueError names the field, the value and what it may be."""
    parts = expression.lower().split()
    if len(parts) != len(_FIELDS):
        raise ValueError(
            f"cron expression {expression!r} has {len(parts)} fields; give five:"
            " minute hour day-of-month month day-of-week, for example '0 8 * * mon-fri'"
        )
    minutes, hours, days, months, weekdays = (_field(part, *field) for part, field in zip(parts, _FIELDS, strict=True))
    return Cron(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(day % 7 for day in weekdays),
        parts[2].startswith("*"),
        parts[4].startswith("*"),
    )


def _field(text: str, name: str, least: int, most: int, names: list[str]) -> set[int]:
    def number(word: str) -> int:
        value = names.index(word) + least if word in names else int(word) if word.isdecimal() else -1
        if not least <= value <= most:
            also = f" or {names[0]} to {names[-1]}" if names else ""
            raise ValueError(f"cron field {name}: {word!r} is not known; give {least} to {most}{also}")
        return value

    result: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        if "/" in item and not (step.isdecimal() and int(step) > 0):
            raise ValueError(
                f"cron field {name}: the step {step!r} is not a whole number above 0; write for example */5"
            )
        if span == "*":
            first, last = least, most
        else:
            begin, _, end = span.partition("-")
            first = number(begin)
            last = number(end) if "-" in span else most if step else first
        if last < first:
            raise ValueError(f"cron field {name}: the range {span!r} runs backwards; put the smaller end first")
        result.update(range(first, last + 1, int(step or 1)))
    return result


@lru_cache(maxsize=4096)
def latest(cron: Cron, minute: datetime) -> datetime | None:
    """When the expression last fired, up to this minute (a time without a zone); None if never in eight years."""
    day = minute.date()
    for back in range(_FARTHEST_DAYS):
        at = day - timedelta(days=back)
        if not cron.is_day(at):
            continue
        for hour in reversed(cron.hours):
            if back == 0 and hour > minute.hour:
                continue
            for tick in reversed(cron.minutes):
                if back or hour < minute.hour or tick <= minute.minute:
                    return datetime(at.year, at.month, at.day, hour, tick)  # noqa: DTZ001 (the zone's own clock)
    return None


def is_open(schedule: Schedule, at: datetime) -> bool:
    """Whether the window is open at a time (with a zone)."""
    minute = at.astimezone(schedule.zone or UTC).replace(second=0, microsecond=0, tzinfo=None)
    opened = latest(parse(schedule.start), minute)
    closed = latest(parse(schedule.end), minute)
    return opened is not None and (closed is None or opened > closed)


class Bounds(NamedTuple):
    """Least and most replicas now, and the windows that say so."""

    least: int
    most: int
    words: str = ""


def bounds(schedules: Sequence[Schedule], least: int, most: int, at: datetime, lead_s: float) -> Bounds:
    """The bounds at a time (with a zone); `least` and `most` are those outside of all windows.

    ValueError for an expression that cannot be read, or a time without a zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"at: {at.isoformat()} has no zone; give an aware time, for example datetime.now(UTC)")
    soon = at + timedelta(seconds=lead_s)
    open_ = [schedule for schedule in schedules if is_open(schedule, at)]
    coming = [schedule for schedule in schedules if schedule not in open_ and is_open(schedule, soon)]
    mins = [s.min_replicas for s in open_ if s.min_replicas is not None]
    maxs = [s.max_replicas for s in open_ if s.max_replicas is not None]
    low, high = max(mins, default=least), min(maxs, default=most)
    ahead = max((s.min_replicas for s in coming if s.min_replicas is not None), default=low)
    names = [f"open from {s.start!r} to {s.end!r}" for s in open_]
    if ahead > low:
        low = ahead
        names += [f"about to open at {s.start!r}" for s in coming]
    return Bounds(low, max(low, high), ", ".join(names))
