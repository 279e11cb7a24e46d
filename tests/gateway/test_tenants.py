"""Tenants: keys, limits on virtual time, and all of it through real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from gateway.limits import Limits
from gateway.refusal import Refusal
from gateway.tenants import Pass, Tenants, credential
from gateway.wire import Settings, SettingsUpdate, TenantEntry, TenantKey, TenantLimit

from .sharing import share

KEY = "tgm_0000000a_secret-of-a"
OTHER = "tgm_0000000b_secret_of_b"


def hashed(key: str) -> TenantKey:
    return TenantKey(id=key.split("_")[1], sha256=hashlib.sha256(key.encode()).hexdigest())


def settings(*limits: TenantLimit, name: str = "acme", keys: tuple[str, ...] = (KEY,), **fields) -> Settings:
    entry = TenantEntry(name=name, keys=tuple(map(hashed, keys)), limits=limits, **fields)
    return Settings(tenants=(entry,), require_key=True)


@pytest.fixture
def tenants() -> Tenants:
    made = Tenants(Limits())
    made.apply(settings())
    return made


def test_a_key_tells_who_asks(tenants):
    assert tenants.identify(KEY).name == "acme"


@pytest.mark.parametrize(
    "wrong",
    [None, "", "tgm", KEY[:-1], KEY + "x", OTHER, "tgm_0000000a_secret-of-b", "sk-proj-1", "tgm_0000000a_é\udcff"],
)
def test_all_else_is_refused(tenants, wrong):
    refusal = tenants.identify(wrong)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401
    assert "secret" not in refusal.message


def test_rotation_keeps_the_tenants_use_and_ends_the_old_key(tenants):
    tenant = tenants.identify(KEY)
    tenants.release(tenants.admit(tenant, "m", 0.0), 200, 1.0)
    tenants.apply(settings(keys=(KEY, OTHER)))
    assert tenants.identify(OTHER) is tenants.identify(KEY) is tenant
    tenants.apply(settings(keys=(OTHER,)))
    assert isinstance(tenants.identify(KEY), Refusal)
    assert tenants.identify(OTHER).usage.requests == {("m", 200): 1}


def test_without_tenants_nobody_is_asked():
    assert Tenants(Limits()).identify("sk-whatever") is None


def test_rates_hold_for_the_tenant_and_for_the_model(tenants):
    tenants.apply(settings(TenantLimit(requests_per_s=5.0), TenantLimit(model="m", requests_per_s=2.0, slot=1)))
    tenant = tenants.identify(KEY)

    def passed(model: str, now: float) -> int:
        results = [tenants.admit(tenant, model, now) for _ in range(10)]
        for held in results:
            if isinstance(held, Pass):
                tenants.release(held, 200, now)
        refused = [r for r in results if isinstance(r, Refusal)]
        assert all((r.status, r.reason) == (429, "rate_limit") and r.retry_after_s >= 1 for r in refused)
        return 10 - len(refused)

    assert passed("m", 0.0) == 2
    # What the model's limit refused cost the tenant nothing.
    assert passed("other", 0.0) == 3
    assert passed("m", 1.0) == 2


def test_concurrency_holds_and_what_is_refused_takes_nothing(tenants):
    tenants.apply(settings(TenantLimit(concurrency=3), TenantLimit(model="m", concurrency=1, slot=1)))
    tenant = tenants.identify(KEY)
    held = tenants.admit(tenant, "m", 0.0)
    assert tenants.admit(tenant, "m", 0.0).reason == "concurrency_limit"
    assert isinstance(tenants.admit(tenant, "x", 0.0), Pass)
    assert isinstance(tenants.admit(tenant, "x", 0.0), Pass)
    assert tenants.admit(tenant, "x", 0.0).reason == "concurrency_limit"
    tenants.release(held, 200, 1.0)
    assert isinstance(tenants.admit(tenant, "m", 1.0), Pass)


def test_concurrency_is_counted_over_all_workers():
    both = [Tenants(limits) for limits in share(2)]
    for one in both:
        one.apply(settings(TenantLimit(concurrency=1, slot=9)))
    first, second = (one.identify(KEY) for one in both)
    held = both[0].admit(first, "m", 0.0)
    assert isinstance(both[1].admit(second, "m", 0.0), Refusal)
    both[0].release(held, 200, 0.0)
    assert isinstance(both[1].admit(second, "m", 0.0), Pass)


def test_a_rate_is_that_of_all_workers_together():
    both = [Tenants(limits) for limits in share(2)]
    for one in both:
        one.apply(settings(TenantLimit(requests_per_s=4.0, slot=9)))
    passed = [isinstance(both[n % 2].admit(both[n % 2].identify(KEY), "m", 0.0), Pass) for n in range(10)]
    assert sum(passed) == 4
    # All of it may go through one of them.
    assert [isinstance(both[0].admit(both[0].identify(KEY), "m", 1.0), Pass) for _ in range(5)] == [True] * 4 + [False]


def test_another_tenant_does_not_fill_ones_bucket_again(tenants):
    limit = TenantLimit(requests_per_s=1.0, slot=9)
    tenants.apply(settings(limit))
    assert isinstance(tenants.admit(tenants.identify(KEY), "m", 0.0), Pass)
    tenants.apply(settings(limit.model_copy(update={"slot": 8})))
    assert isinstance(tenants.admit(tenants.identify(KEY), "m", 0.0), Refusal)
    tenants.apply(settings(limit.model_copy(update={"requests_per_s": 2.0})))
    assert isinstance(tenants.admit(tenants.identify(KEY), "m", 0.0), Pass)


def test_a_report_says_what_changed_and_all_to_who_is_new(tenants):
    tenants.apply(settings(TenantLimit(requests_per_s=0.1, burst=1)))
    assert tenants.report(full=True) == ()
    tenant = tenants.identify(KEY)
    tenants.release(tenants.admit(tenant, "m", 0.0), 200, 2.0)
    tenants.admit(tenant, "m", 2.0)
    (told,) = tenants.report(full=False)
    assert (told.name, told.requests, told.seconds) == ("acme", (("m", 200, 1),), (("m", 2.0),))
    assert told.refused == (("rate_limit", 1),)
    assert tenants.report(full=False) == ()
    assert tenants.report(full=True) == (told,)


def test_where_a_key_may_be():
    assert credential([(b"Authorization", b"Bearer k1")]) == "k1"
    assert credential([(b"authorization", b"bearer  k1 ")]) == "k1"
    assert credential([(b"X-Api-Key", b"k2")]) == "k2"
    assert credential([(b"Authorization", b"Basic eDp5")]) is None
    assert credential([]) is None


# --- through sockets ---


def post(key: str | None = KEY, target: str = "/v2/models/m/infer", body: bytes = b"{}", **fields: str) -> bytes:
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(target: str, key: str | None = KEY) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: gw\r\n{f'X-API-Key: {key}' if key else 'X-No: key'}\r\n\r\n".encode()


def close_to(gateway, *limits: TenantLimit, **fields) -> None:
    gateway.apply(SettingsUpdate(term=1, number=0, settings=settings(*limits, **fields)))


async def test_no_key_no_answer_and_the_model_never_sees_a_key(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    close_to(gateway)
    answer = await gateway.ask(post(key=None))
    assert (answer.status, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert (await gateway.ask(post(key=OTHER))).status == 401
    assert not one.seen
    assert (await gateway.ask(post())).status == 200
    assert not one.seen[0].all("authorization")
    assert (await gateway.ask(get("/v2/health/live", key=None))).status == 200
    assert (await gateway.ask(get("/v1/models", key=None))).status == 401


async def test_while_nobody_is_asked_credentials_are_the_models_affair(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    assert (await gateway.ask(post(key="for-the-model"))).status == 200
    assert one.seen[0]["authorization"] == "Bearer for-the-model"


async def test_only_allowed_models_can_be_used_and_are_listed(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    gateway.model("n", one)
    close_to(gateway, models=("m",))
    assert (await gateway.ask(post())).status == 200
    assert (await gateway.ask(post(target="/v2/models/n/infer"))).status == 403
    listed = json.loads((await gateway.ask(get("/v1/models"))).body)
    assert [m["id"] for m in listed["data"]] == ["m"]
    assert (await gateway.ask(get("/v1/models/m"))).status == 200
    assert (await gateway.ask(get("/v1/models/n"))).status == 404
    index = await gateway.ask(post(target="/v2/repository/index"))
    assert [m["name"] for m in json.loads(index.body)] == ["m"]


async def test_usage_is_counted_and_no_demand_comes_of_what_is_refused(gateway, replica):
    gateway.model("m", await replica())
    close_to(gateway, TenantLimit(requests_per_s=0.1, burst=2))
    statuses = [(await gateway.ask(post())).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    tenant = gateway.dispatcher.tenants.by_name["acme"]
    assert tenant.usage.requests == {("m", 200): 2}
    assert tenant.usage.refused == {"rate_limit": 2}
    assert tenant.in_flight == 0
    assert gateway.meter().arrivals == 2
    assert gateway.meter().refused == {"rate_limit": 2}


async def test_a_client_that_leaves_gives_its_place_back(gateway, replica, kit):
    async def hang(seen, writer, reader):
        await reader.read()

    one = await replica(hang)
    gateway.model("m", one)
    close_to(gateway, TenantLimit(concurrency=1))
    client = await gateway.client()
    client.send(post())
    await kit.until(lambda: one.seen)
    assert (await gateway.ask(post())).status == 429
    client.leave()
    tenant = gateway.dispatcher.tenants.by_name["acme"]
    await kit.until(lambda: tenant.in_flight == 0 == tenant.quotas[""].in_flight)


async def test_tenants_in_the_queue_take_turns_and_priority_goes_first(gateway, replica, kit):
    order: list[str] = []
    gate = asyncio.Event()

    async def answer(seen, writer, reader):
        order.append(seen.body.decode())
        await gate.wait()
        await kit.echo(seen, writer, reader)

    one = await replica(answer)
    gateway.model("m", gateway.endpoint(one, concurrency=1))
    names = {"loud": (KEY, 0), "quiet": (OTHER, 0), "boss": ("tgm_0000000c_s", 10)}
    entries = tuple(TenantEntry(name=n, keys=(hashed(k),), priority=p) for n, (k, p) in names.items())
    gateway.apply(SettingsUpdate(term=1, number=0, settings=Settings(tenants=entries, require_key=True)))
    clients = []
    for name in ["loud"] * 5 + ["quiet"] * 2 + ["boss"]:
        client = await gateway.client()
        client.send(post(key=names[name][0], body=name.encode()))
        clients.append(client)
        await kit.until(lambda: len(clients) == gateway.meter().arrivals)
    gate.set()
    for client in clients:
        assert (await client.response()).status == 200
    assert order == ["loud", "boss", "loud", "quiet", "loud", "quiet", "loud", "loud"]


async def test_a_full_queue_gives_way_to_who_ranks_higher(gateway, kit):
    gateway.model("m", queue_max_requests=1)
    entries = (
        TenantEntry(name="batch", keys=(hashed(KEY),), priority=-1),
        TenantEntry(name="live", keys=(hashed(OTHER),)),
    )
    gateway.apply(SettingsUpdate(term=1, number=0, settings=Settings(tenants=entries, require_key=True)))
    waiting = await gateway.client()
    waiting.send(post())
    await kit.until(lambda: gateway.meter().queue.value == 1)
    assert (await gateway.ask(post())).status == 503
    live = await gateway.client()
    live.send(post(key=OTHER))
    evicted = await waiting.response()
    assert (evicted.status, json.loads(evicted.body)["error"]) == (
        503,
        "model 'm' has no replica yet and its queue is full",
    )
    assert gateway.meter().queue.value == 1


async def test_a_bound_over_all_models(gateway, kit):
    gateway.apply(SettingsUpdate(term=1, number=0, settings=Settings(queue_max_requests=2)))
    for name in ("a", "b", "c"):
        gateway.model(name)
    for name in ("a", "b"):
        (await gateway.client()).send(post(None, f"/v2/models/{name}/infer"))
    await kit.until(lambda: sum(gateway.meter(n).queue.value for n in "ab") == 2)
    answer = await gateway.ask(post(None, "/v2/models/c/infer"))
    assert answer.status == 503 and int(answer["Retry-After"]) >= 1


async def test_metrics_name_tenants_and_never_keys(gateway, replica):
    from gateway import metrics

    gateway.model("m", await replica())
    close_to(gateway, TenantLimit(requests_per_s=0.1, burst=1))
    await gateway.ask(post())
    await gateway.ask(post())
    collector = metrics.WorkerCollector(
        gateway.dispatcher,
        connections=gateway.pools.counts,
        clients=lambda: 0,
        connected=lambda: True,
        ready=lambda: True,
        now=asyncio.get_running_loop().time,
    )
    page = metrics.render(metrics.registry(collector)).decode()
    assert 'gateway_tenant_requests_total{code="200",model="m",tenant="acme"} 1.0' in page
    assert 'gateway_tenant_refused_requests_total{reason="rate_limit",tenant="acme"} 1.0' in page
    assert "secret" not in page and hashed(KEY).sha256 not in page
