"""Deadlines of clients, weighted versions, sticky requests and mirrors, through real sockets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from gateway.deadlines import BadTimeout, client_timeout
from gateway.splitting import body_of, point, target_of, version
from gateway.wire import ModelEntry, SplitTarget


def post(target: str = "/v2/models/m/infer", body: bytes = b"{}", **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {target} HTTP/1.1\r\nHost: gw\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def hang(seen, writer, reader):
    await reader.read()


# --- deadlines ---


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("X-Request-Timeout", "2", 2.0),
        ("x-request-timeout", "1.5s", 1.5),
        ("X-Request-Timeout", "250ms", 0.25),
        ("X-Request-Timeout", "2m", 120.0),
        ("grpc-timeout", "250m", 0.25),
        ("Grpc-Timeout", "2S", 2.0),
        ("grpc-timeout", "1H", 3600.0),
        ("x-request-timeouts", "2", None),
    ],
)
def test_what_a_client_says_of_its_patience(name, value, seconds):
    assert client_timeout([(name.encode(), value.encode())]) == seconds


@pytest.mark.parametrize("value", ["", "0", "-1", "soon", "1e9", "5 s", "nan", "9999999999"])
def test_what_it_must_not_say(value):
    with pytest.raises(BadTimeout, match="write for example"):
        client_timeout([(b"X-Request-Timeout", value.encode())])


async def test_past_the_clients_deadline_the_work_is_cancelled_and_nobody_blamed(gateway, replica, kit):
    one = await replica(hang)
    gateway.model("m", one, timeout_s=60)
    answer = await gateway.ask(post(X_Request_Timeout="200ms"))
    assert answer.status == 504
    await kit.until(lambda: one.open == 0 and gateway.quiet)
    assert gateway.meter().endpoints["m-0"].failures == 0
    assert gateway.dispatcher.find("m").route.usable[0].vitals.errors == 0


async def test_past_the_clients_deadline_its_place_in_the_queue_is_free(gateway, kit):
    gateway.model("m", queue_max_s=60, timeout_s=60)
    answer = await gateway.ask(post(grpc_timeout="100m"))
    assert answer.status == 504
    assert gateway.quiet


async def test_a_stream_ends_at_the_clients_deadline(gateway, replica, kit):
    async def drip(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    gateway.model("m", await replica(drip), timeout_s=60)
    async with asyncio.timeout(5):
        with pytest.raises(kit.Truncated):
            await gateway.ask(post(X_Request_Timeout="300ms"))
    await kit.until(lambda: gateway.quiet)


async def test_a_deadline_that_cannot_be_read_is_said_so(gateway, replica):
    gateway.model("m", await replica())
    answer = await gateway.ask(post(X_Request_Timeout="soon"))
    assert answer.status == 400 and b"X-Request-Timeout" in answer.body


# --- versions ---


def test_a_growing_percent_moves_keys_to_the_version_that_grows_only():
    def split(percent: float) -> list[str]:
        entry = ModelEntry(name="m", split=(SplitTarget(model="new", percent=percent),))
        return [version(entry, point(f"user-{n}", "m")) for n in range(2000)]

    few, many = split(10), split(30)
    assert abs(few.count("new") / 2000 - 0.1) < 0.03
    assert abs(many.count("new") / 2000 - 0.3) < 0.03
    assert all(after == "new" for before, after in zip(few, many, strict=True) if before == "new")


def test_targets_and_bodies_name_the_version():
    assert target_of("/v2/models/m/versions/1/infer?a=b", "n") == "/v2/models/n/versions/1/infer?a=b"
    assert target_of("/v2/models/m", "n") == "/v2/models/n"
    assert target_of("/v1/completions", "n") == "/v1/completions"
    assert json.loads(body_of('{"model":"m","x":"é"}'.encode(), "n")) == {"model": "n", "x": "é"}


async def test_requests_go_to_versions_by_percent(gateway, replica):
    old, new = await replica(), await replica()
    gateway.model("new", new)
    gateway.model("m", old, split=(SplitTarget(model="new", percent=25),))
    client = await gateway.client()
    for _ in range(400):
        assert (await client.ask(post())).status == 200
    assert 60 <= len(new.seen) <= 140
    assert len(old.seen) + len(new.seen) == 400
    assert new.seen[0].target == "/v2/models/new/infer"
    assert gateway.meter("new").arrivals == len(new.seen)
    body = b'{"model":"m","prompt":"x"}'
    for _ in range(60):
        await client.ask(post("/v1/completions", body))
    assert {json.loads(s.body)["model"] for s in new.seen if s.target == "/v1/completions"} == {"new"}
    assert {json.loads(s.body)["model"] for s in old.seen if s.target == "/v1/completions"} == {"m"}


BOUNDARY = "--------x"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def form(model: str, file: bytes = b"RIFF\r\n---------x\r\n--\0", *, file_first: bool = False) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'.encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode() + file + b"\r\n",
    ]
    return b"".join(reversed(parts) if file_first else parts) + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize("file_first", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_form_names_the_version_too(gateway, replica, file_first, chunked):
    new = await replica()
    gateway.model("a-much-longer-name", new)
    gateway.model("m", await replica(), split=(SplitTarget(model="a-much-longer-name", percent=100),))
    body = form("m", file_first=file_first)
    wanted = form("a-much-longer-name", file_first=file_first)
    client = await gateway.client()
    if chunked:
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: {KIND}\r\n"
        client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        for byte in body:
            client.send(b"1\r\n" + bytes([byte]) + b"\r\n")
        client.send(b"0\r\n\r\n")
        answer = await client.response()
    else:
        answer = await client.ask(post("/v1/audio/transcriptions", body, Content_Type=KIND))
    assert answer.status == 200, answer
    assert new.seen[0].body == wanted


async def test_a_long_form_streams_to_its_version(gateway, replica, kit):
    new = await replica()
    gateway.model("n", new)
    gateway.model("my-model", await replica(), split=(SplitTarget(model="n", percent=100),))
    file = bytes(range(256)) * 8192
    request = post("/v1/audio/transcriptions", form("my-model", file), Content_Type=KIND)
    client = await gateway.client()
    client.send(request[:-1_000_000])
    await kit.until(lambda: new.seen, "it is sent on before all of it has come")
    client.send(request[-1_000_000:])
    assert (await client.response()).status == 200
    assert new.seen[0].body == form("n", file)


async def test_a_mirror_gets_the_form_that_names_it(gateway, replica, kit):
    one, two, shadow = await replica(), await replica(), await replica()
    gateway.model("shadow", shadow)
    gateway.model("version-2", two)
    gateway.model("m", one, mirror="shadow", split=(SplitTarget(model="version-2", percent=100),))
    await gateway.ask(post("/v1/images/edits", form("m"), Content_Type=KIND))
    await kit.until(lambda: shadow.seen and shadow.seen[0].body)
    assert two.seen[0].body == form("version-2")
    assert shadow.seen[0].body == form("shadow")


async def test_a_realtime_session_names_the_version():
    assert target_of("/v1/realtime?a=b&model=m&c", "n/1") == "/v1/realtime?a=b&model=n%2F1&c"
    assert target_of("/v1/realtime?intent=x&mod%65l=m", "n") == "/v1/realtime?intent=x&model=n"


async def test_a_version_that_is_gone_leaves_its_share_to_the_model(gateway, replica):
    gateway.model("m", await replica(), split=(SplitTarget(model="gone", percent=100),))
    assert (await gateway.ask(post())).status == 200


# --- sticky ---


async def test_the_same_value_goes_to_the_same_replica(gateway, replica):
    replicas = [await replica() for _ in range(4)]
    gateway.model("m", *replicas, sticky_header="X-Session")
    client = await gateway.client()
    for n in range(200):
        await client.ask(post(body=b"%d" % (n % 20), X_Session=f"s{n % 20}"))
    homes = [{s.body for s in one.seen} for one in replicas]
    assert sum(len(h) for h in homes) == 20, "each session has one home"
    assert sum(bool(h) for h in homes) >= 3, "and they are spread"
    # One replica less moves only its own sessions.
    gateway.model("m", *replicas[:3], sticky_header="X-Session")
    before = [len(one.seen) for one in replicas]
    for n in range(20):
        await client.ask(post(body=b"%d" % n, X_Session=f"s{n}"))
    after = [{s.body for s in one.seen[start:]} for one, start in zip(replicas, before, strict=True)]
    assert all(homes[i] <= after[i] for i in range(3))


async def test_without_the_header_requests_are_spread(gateway, replica):
    replicas = [await replica() for _ in range(2)]
    gateway.model("m", *replicas, sticky_header="X-Session")
    client = await gateway.client()
    for _ in range(60):
        await client.ask(post())
    assert all(len(one.seen) > 10 for one in replicas)


# --- canary ---


async def test_a_canary_gets_its_percent_and_nothing_while_it_is_out_of_order(gateway, replica):
    stable, canary = await replica(), await replica()
    endpoints = (gateway.endpoint(stable, id="m-0"), gateway.endpoint(canary, id="m-1", slot=1, canary=True))
    gateway.model("m", *endpoints, canary_percent=20)
    client = await gateway.client()
    for _ in range(500):
        assert (await client.ask(post())).status == 200
    assert 60 <= len(canary.seen) <= 140
    await canary.stop()
    for _ in range(50):
        assert (await client.ask(post())).status == 200


# --- mirror ---


async def test_a_mirror_gets_a_copy_and_changes_nothing(gateway, replica, kit):
    one, shadow = await replica(), await replica()
    gateway.model("shadow", shadow)
    gateway.model("m", one, mirror="shadow")
    answer = await gateway.ask(post(body=b"tensor", X_Trace="t1"))
    assert (answer.status, answer.body) == (200, b"tensor")
    await kit.until(lambda: shadow.seen and shadow.seen[0].body)
    copy = shadow.seen[0]
    assert (copy.target, copy.body, copy["x-trace"], copy["x-mirrored-from"]) == (
        "/v2/models/shadow/infer",
        b"tensor",
        "t1",
        "m",
    )
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter("shadow").codes == {200: 1}


async def test_a_copy_is_forwarded_by_the_same_rules(gateway, replica, kit):
    shadow = await replica()
    gateway.model("shadow", shadow)
    gateway.model("m", await replica(), mirror="shadow")
    request = post(
        body=b"tensor",
        X_Forwarded_For="6.6.6.6",
        X_Mirrored_From="nobody",
        Connection="keep-alive, X-Secret",
        X_Secret="s",
        Expect="100-continue",
        X_Request_Id="r-1",
    )
    assert (await gateway.ask(request)).status == 200
    await kit.until(lambda: shadow.seen and shadow.seen[0].body)
    copy = shadow.seen[0]
    assert (copy["X-Forwarded-For"], copy["X-Mirrored-From"], copy["X-Request-Id"]) == ("127.0.0.1", "m", "r-1")
    assert not [n for n, _ in copy.headers if n.lower() in ("x-secret", "expect", "connection")]


@pytest.mark.parametrize("how", ["hung", "dead", "none", "500"])
async def test_whatever_ails_the_mirror_is_no_affair_of_the_client(gateway, replica, kit, how):
    one = await replica()
    shadow = await replica(kit.fixed(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n") if how == "500" else hang)
    if how == "dead":
        await shadow.stop()
    if how == "none":
        gateway.model("shadow")
    else:
        gateway.model("shadow", shadow, timeout_s=0.3)
    gateway.model("m", one, mirror="shadow")
    client = await gateway.client()
    async with asyncio.timeout(5):
        answers = [await client.ask(post()) for _ in range(100)]
    assert Counter(a.status for a in answers) == {200: 100}
    await kit.until(lambda: gateway.quiet, "copies end")
    assert gateway.wakes == (["shadow"] if how == "none" else [])


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v2/models/m/infer", b"x" * 300_000),
        ("/v1/embeddings", b'{"model":"m","input":"' + b"x" * 300_000 + b'"}'),
    ],
)
async def test_a_large_body_is_not_copied_and_that_is_counted(gateway, replica, kit, target, body):
    shadow = await replica()
    gateway.model("shadow", shadow)
    gateway.model("m", await replica(), mirror="shadow")
    assert (await gateway.ask(post(target, body))).status == 200
    await kit.until(lambda: gateway.meter("shadow").refused == {"mirror_dropped": 1})
    assert not shadow.seen


async def test_a_share_of_requests_is_mirrored(gateway, replica, kit):
    one, shadow = await replica(), await replica()
    gateway.model("shadow", shadow)
    gateway.model("m", one, mirror="shadow", mirror_percent=30)
    client = await gateway.client()
    for _ in range(200):
        await client.ask(post())
    await kit.until(lambda: gateway.quiet)
    assert 30 <= len(shadow.seen) <= 90
