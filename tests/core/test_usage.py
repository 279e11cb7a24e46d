from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import Report, TenantCounters
from tangram.core.usage import SETTLED, SETTLED_S, Entry, UsageTracker


def report(epoch: str, requests: int, *, tenant: str = "acme", code: int = 200, refused: int = 0) -> Report:
    counters = TenantCounters(
        name=tenant,
        requests=(("m", code, requests),),
        seconds=(("m", requests / 2),),
        refused=(("rate_limit", refused),) if refused else (),
    )
    return Report(worker=0, epoch=epoch, uptime_s=1.0, applied=(1, 1), tenants=(counters,))


def test_the_last_report_of_an_epoch_is_all_there_is_to_know_of_it():
    tracker = UsageTracker({}, 0.0)
    for count in (3, 3, 7):
        tracker.report(report("a", count, refused=1), 0.0)
    tracker.report(report("b", 5, code=503), 0.0)
    usage = tracker.totals()["acme"]
    assert usage.models["m"].requests == {200: 7, 503: 5}
    assert usage.models["m"].seconds == 6.0
    assert usage.refused == {"rate_limit": 1}
    assert tracker.totals().keys() == {"acme"}


def test_who_takes_up_the_record_goes_on_from_it_and_counts_nothing_twice():
    first = UsageTracker({}, 0.0)
    first.report(report("a", 7), 0.0)
    second = UsageTracker(first.changed(), 1.0)
    assert second.changed() == {}
    # The worker says again all that it counted, and a little more.
    second.report(report("a", 9), 1.0)
    assert second.totals()["acme"].models["m"].requests == {200: 9}
    assert set(second.changed()) == {Entry("a", "acme", "m", "200"), Entry("a", "acme", "m", "seconds")}


def test_epochs_that_are_over_are_added_up():
    tracker = UsageTracker({Entry("old", "acme", "m", "200"): 4.0, Entry(SETTLED, "acme", "m", "200"): 1.0}, 0.0)
    tracker.report(report("live", 2), 0.0)
    tracker.recorded()
    assert tracker.settle({"live"}, SETTLED_S - 1) == set()
    assert tracker.settle({"live"}, SETTLED_S) == {"old"}
    assert tracker.changed() == {Entry(SETTLED, "acme", "m", "200"): 5.0}
    assert tracker.totals()["acme"].models["m"].requests == {200: 7}
    assert tracker.settle((), 3 * SETTLED_S) == {"live"}
    assert tracker.totals()["acme"].models["m"].requests == {200: 7}


def test_a_tenant_that_was_deleted_begins_anew():
    tracker = UsageTracker({}, 0.0)
    tracker.report(report("a", 7), 0.0)
    tracker.report(report("a", 1, tenant="other"), 0.0)
    tracker.forget(["acme"])
    assert tracker.totals().keys() == {"other"}
    assert all(entry.tenant == "other" for entry in tracker.changed())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.booleans(), st.booleans())))
def test_whatever_is_lost_repeated_or_restarted_the_total_is_what_the_workers_counted(steps):
    counted: dict[str, int] = dict.fromkeys("abc", 0)
    record: dict[Entry, float] = {}
    tracker = UsageTracker(record, 0.0)
    for epoch, more, lost, restart in steps:
        counted[epoch] += more
        if not lost:
            tracker.report(report(epoch, counted[epoch]), 0.0)
        if restart:
            # What was not on record is said again by the workers that are there.
            record |= tracker.changed()
            tracker = UsageTracker(record, 0.0)
    for epoch, count in counted.items():
        if count:
            tracker.report(report(epoch, count), 0.0)
    models = [m for usage in tracker.totals().values() for m in usage.models.values()]
    assert sum(sum(m.requests.values()) for m in models) == sum(counted.values())
