"""Which requests the fast path takes, and what it makes of their heads; held against the full path's own parts."""

from __future__ import annotations

import hashlib
import random

import pytest

from gateway import plain, wire
from gateway.dispatch import Dispatcher
from gateway.limits import Limits
from gateway.meter import Meter
from gateway.plans import Planner

KEY = "tgm_k_" + "s" * 43
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a:1\r\nX-A: b\r\nContent-Length: 12\r\n\r\n"


class Desk:
    """A planner and the dispatcher whose table it follows."""

    def __init__(self, *models: wire.ModelEntry, **settings) -> None:
        self.dispatcher = Dispatcher(Limits(), Meter(0, "e", 0.0), random.Random(0))
        self.planner = Planner(self.dispatcher)
        self.number = 0
        self.table(*models, **settings)

    def table(self, *models: wire.ModelEntry, **settings) -> None:
        self.number += 1
        snapshot = wire.Snapshot(term=1, number=self.number, models=models, settings=wire.Settings(**settings))
        self.dispatcher.apply(snapshot, 0.0)

    def plan(self, head: bytes):
        """The plan for a head, made for the table in use; None where the full path is to see to it."""
        end = head.index(b"\r\n\r\n")
        known = self.planner.exact.get(head[:end]) or self.planner.look_up(head, end)
        if known is None:
            return None
        if known[0].edition != self.dispatcher.table.edition:
            self.planner.resolve(known[0])
        return known[0] if known[0].name else None


def model(name: str = "m", **fields) -> wire.ModelEntry:
    at = wire.EndpointEntry(id="m-0", host="127.0.0.1", port=1)
    return wire.ModelEntry(name=name, endpoints=(at,), **fields)


#: Fields of a model that the dispatcher, the routing or the plan heed, so that the fast path does too.
HEEDED = {
    *("name", "aliases", "protocol", "endpoints", "timeout_s", "retry_attempts", "retry_all_methods", "max_replicas"),
    *("queue_max_requests", "queue_max_bytes", "queue_max_s", "slot", "starting", "expected_ready_s", "unavailable"),
    *("health", "canary_percent", "mirror_percent"),
}
#: Fields with which a model needs more than to have its requests passed on.
SPECIAL = {
    "split": (wire.SplitTarget(model="n", percent=10.0),),
    "mirror": "n",
    "sticky_header": "X-User",
    "hedge": wire.Hedge(),
    "rename_aliases": True,
}


def test_each_field_of_a_model_is_heeded_or_leaves_it_to_the_full_path():
    """Who adds a field decides which; see gateway.plans.needs_more."""
    assert set(wire.ModelEntry.model_fields) == HEEDED | set(SPECIAL)


@pytest.mark.parametrize("field", SPECIAL)
def test_models_that_need_more_are_left_to_the_full_path(field):
    desk = Desk(model(aliases=("other",), **{field: SPECIAL[field]}))
    assert desk.plan(HEAD.replace(b"/m/", b"/other/")) is None
    assert (desk.plan(HEAD) is None) == (field != "rename_aliases")
    desk.table(model(aliases=("other",)))
    assert desk.plan(HEAD).name == "m"
    assert desk.plan(HEAD.replace(b"/m/", b"/other/")).name == "m"


@pytest.mark.parametrize(
    "line",
    [
        b"Expect: 100-continue",
        b"Transfer-Encoding: chunked",
        b"TE: trailers",
        b"Upgrade: websocket",
        b"Upgrade: h2c",
        b"Connection: X-A",
        b"Connection: close",
        b"Connection: Upgrade",
        b"Connection: Upgrade\r\nUpgrade: websocket",
        b"Connection: Upgrade\r\nUpgrade: h2c, websocket",
        b"Connection: keep-alive\r\nConnection: keep-alive",
        b"Authorization: a\r\nAuthorization: b",
        b"Host: b",
        b"X-A: twice",
        b"Content-Length: 12",
        b"X-Request-Timeout: 2",
        b"grpc-timeout: 2S",
        b"X-B : c",
        b"X-B:c",
        b"X-B: c ",
        b"X-B: ",
        b" folded: x",
        b"X-B: a\x00b",
        b"X-B: a\nb",
        b"X-B: a\x7fb",
        b"nonsense",
    ],
)
def test_what_is_not_plain_is_left_to_the_full_path(line):
    desk = Desk(model())
    assert desk.plan(HEAD) is not None
    assert desk.plan(HEAD.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")) is None


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: Keep-Alive",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA",
        b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7",
        b"accept: text/html\r\nAccept: */*",
    ],
)
def test_what_common_clients_and_proxies_add_is_plain(lines):
    assert Desk(model()).plan(HEAD.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n\r\n")) is not None


@pytest.mark.parametrize(
    "line",
    [
        b"PUT /v2/models/m/infer HTTP/1.1",
        b"POST /v2/models/m/infer HTTP/1.0",
        b"POST http://b/v2/models/m/infer HTTP/1.1",
        b"POST /v2/models/m/../infer HTTP/1.1",
        b"POST /v2/models/m/%2E%2e/infer HTTP/1.1",
        b"POST /v2/models/m/infer#x HTTP/1.1",
        b"POST //v2/models/m/infer HTTP/1.1",
        b"POST  /v2/models/m/infer HTTP/1.1",
        b"GET /v2/health/live HTTP/1.1",
        b"GET /v2/models/m/ready HTTP/1.1",
        b"GET /v1/models HTTP/1.1",
        b"POST /v2/models/unknown/infer HTTP/1.1",
        b"GET /nowhere HTTP/1.1",
    ],
)
def test_other_requests_than_plain_ones_for_a_model_are_left_to_the_full_path(line):
    assert Desk(model()).plan(line + HEAD[HEAD.index(b"\r\n") :]) is None


@pytest.mark.parametrize("length", [b"012", b"+12", b"1_2", b"1 2", b"", b"12, 12", b"99999999999999999999", b"0x1"])
def test_a_length_has_one_form(length):
    assert Desk(model()).plan(HEAD.replace(b": 12\r", b": %b\r" % length)) is None


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
def test_heads_that_differ_in_their_length_have_one_plan_and_sizes_of_their_own(name):
    desk = Desk(model())
    known = []
    for number in (b"0", b"7", b"123456"):
        head = HEAD.replace(b"Content-Length: 12", name + b": " + number)
        found = desk.planner.look_up(head + b"body", head.index(b"\r\n\r\n"))
        assert found[1:3] == (number, len(head) + int(number))
        known.append(found[0])
    assert len({id(plan) for plan in known}) == 1


def whole(desk: Desk, head: bytes) -> tuple[bytes, bytes]:
    """A request's head as it goes to an endpoint, up to the number of its length, and the client's id of it."""
    plan = desk.plan(head)
    values = desk.planner.look_up(head, head.index(b"\r\n\r\n"))[3]
    return plan.lead(values), plan.id_of(values)


def test_heads_that_differ_in_the_ids_they_are_traced_by_have_one_plan_and_values_of_their_own():
    desk = Desk(model())
    for n in (1, 2, 3):
        fields = b"X-Request-Id: r%d\r\nX-A: b\r\nTraceParent: 00-%d\r\nb3: %d" % (n, n, n)
        lead, id = whole(desk, HEAD.replace(b"X-A: b", fields))
        assert id == b"r%d" % n
        assert lead == (
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a:1\r\n"
            b"X-A: b\r\nTraceParent: 00-%d\r\nb3: %d\r\nContent-Length: " % (n, n)
        )
    assert len(desk.planner._plans) == 1
    assert not desk.planner.exact


def test_lines_of_one_list_keep_their_values_and_their_order():
    desk = Desk(model())
    for n in (1, 2):
        fields = b"tracestate: a=%d\r\nbaggage: c=%d\r\nX-A: b\r\nTraceState: b=%d\r\ntracestate: d=%d" % (n, n, n, n)
        lead, _ = whole(desk, HEAD.replace(b"X-A: b", fields))
        assert fields in lead


@pytest.mark.parametrize("value", [b"", b" a", b"a ", b"a\0b", b"a\rb", b"a\nb", b"a\x7fb"])
def test_a_value_that_varies_is_looked_at_each_time(value):
    desk = Desk(model())
    traced = HEAD.replace(b"X-A: b", b"traceparent: 00-1")
    assert desk.plan(traced.replace(b"00-1", value)) is None
    assert desk.plan(traced)
    assert desk.plan(traced.replace(b"00-1", value)) is None
    assert desk.plan(traced.replace(b"00-1", b"00-2"))


@pytest.mark.parametrize("odd", [b"Content-Length: 012\r\nb3: 1", b"Content-Length: 12\r\nb3: " + b"x" * 4019])
def test_a_head_with_an_odd_value_does_not_keep_those_like_it_from_the_fast_path(odd):
    desk = Desk(model())
    head = HEAD.replace(b"Content-Length: 12", b"Content-Length: 12\r\nb3: 1")
    odd = HEAD.replace(b"Content-Length: 12", odd)
    assert desk.plan(odd) is None
    assert desk.plan(head)


def test_an_id_that_is_none_is_not_taken():
    desk = Desk(model())
    given = HEAD.replace(b"X-A: b", b"X-Request-Id: a")
    assert [whole(desk, given.replace(b"Id: a", b"Id: " + id))[1] for id in (b"a", b"b c", b"d" * 200, b"e")] == [
        *(b"a", b"", b"", b"e"),
    ]


def test_a_second_length_is_never_overlooked():
    for second in (b"Content-Length: 12", b"content-length: 5"):
        assert Desk(model()).plan(HEAD.replace(b"X-A: b", second)) is None


def test_a_key_is_checked_again_with_each_table_and_not_passed_on():
    keys = (wire.TenantKey(id="k", sha256=hashlib.sha256(KEY.encode()).hexdigest()),)
    head = HEAD.replace(b"X-A: b", b"Authorization: Bearer " + KEY.encode())
    desk = Desk(model(), tenants=(wire.TenantEntry(name="t", keys=keys),), require_key=True)
    assert desk.plan(HEAD) is None
    plan = desk.plan(head)
    assert plan.tenant.name == "t"
    assert KEY.encode() not in plan.prefix
    assert desk.plan(head.replace(b"ss", b"sx")) is None
    desk.table(model(), tenants=(wire.TenantEntry(name="t"),), require_key=True)
    assert desk.plan(head) is None
    desk.table(model())
    assert desk.plan(head).tenant is None
    assert KEY.encode() in desk.plan(head).prefix


def test_a_body_that_names_its_model_gives_a_plan_for_it():
    desk = Desk(model(), model("n", timeout_s=5.0))
    plan = desk.plan(HEAD.replace(b"/v2/models/m/infer", b"/v1/completions"))
    assert plan.in_body
    assert desk.planner.named(plan, b'{"model": "n"}').timeout_s == 5.0
    assert desk.planner.named(plan, b'{"model": "n"}') is desk.planner.named(plan, b'{"model":"n"}')
    assert desk.planner.named(plan, b'{"model": "unknown"}') is None
    assert desk.planner.named(plan, b'{"model": "n"') is None
    for line in (b"Content-Type: multipart/form-data; boundary=x", b"Content-Encoding: gzip"):
        head = HEAD.replace(b"/v2/models/m/infer", b"/v1/completions").replace(b"X-A: b", line)
        assert desk.plan(head) is None


def test_what_is_kept_of_heads_is_bounded():
    desk = Desk(model())
    for n in range(5000):
        desk.plan(HEAD.replace(b"X-A: b", b"X-Request-Id: r%d" % n))
    assert len(desk.planner.exact) <= 256
    assert len(desk.planner._plans) <= 256
    for n in range(5000):
        desk.plan(HEAD.replace(b"X-A: b", b"X-A: %d" % n))
        desk.plan(HEAD.replace(b": 12", b": %d" % n))
    assert len(desk.planner.exact) <= 256
    assert len(desk.planner._plans) <= 256
    long = HEAD.replace(b"X-A: b", b"X-A: " + b"b" * plain.MAX_HEAD)
    assert desk.plan(long) is None
    assert len(desk.planner.exact) + len(desk.planner._plans) <= 512
