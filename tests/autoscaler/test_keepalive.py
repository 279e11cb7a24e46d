from __future__ import annotations

from autoscaler.keepalive import KEPT, keep_s, remember


def after(*silences):
    known = ()
    for seconds in silences:
        known = remember(known, seconds)
    return known


def test_the_idle_time_holds_until_silences_are_known():
    assert keep_s((), 90.0) == 90.0
    assert keep_s(after(*[600.0] * 15), 90.0) == 90.0


def test_where_requests_come_back_soon_or_not_at_all_the_rest_is_saved():
    assert keep_s(after(*[20.0, 600.0] * 10), 90.0) == 30.0
    assert keep_s(after(*[600.0] * 20), 90.0) == 15.0


def test_where_some_come_back_late_the_whole_time_is_kept():
    assert keep_s(after(*[20.0, 600.0] * 10, 80.0), 90.0) == 90.0


def test_never_longer_than_told_and_bounded():
    assert keep_s(after(*[600.0] * 20), 10.0) == 10.0
    assert len(after(*[60.0] * 100)) == KEPT
    assert after(*[1.0] * 100) == ()
