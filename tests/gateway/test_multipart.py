from __future__ import annotations

import json

import pytest

from gateway.protocols import openai
from gateway.protocols.multipart import BadForm, FieldFinder

KIND = 'multipart/form-data; boundary="----x 12"'


def part(name: str, value: bytes, extra: str = "") -> bytes:
    return f'------x 12\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"


FILE = part("file", b"\r\n------x 1\r\n--\0" * 20 + b'\r\nname="model"\r\n\r\nwrong', '; filename="a;b.wav"')
MODEL = part("model", "größe/1".encode())
LAST = b"------x 12--\r\n"


def find(data: list[bytes]) -> str | None:
    finder = FieldFinder(KIND, "model")
    for piece in data:
        found = finder.feed(piece)
        if found is not None:
            return found
    return None


@pytest.mark.parametrize("before", [b"", FILE, part("prompt", b"") + FILE, b"preamble\r\n" + FILE])
def test_the_field_is_found_wherever_the_form_is_cut(before):
    form = before + MODEL + FILE + LAST
    for cut in range(len(form)):
        assert find([form[:cut], form[cut:]]) == "größe/1", cut
    assert find([bytes([byte]) for byte in form]) == "größe/1"


def test_nothing_of_files_is_kept():
    finder = FieldFinder(KIND, "model")
    assert finder.feed(part("file", b"")[:-2]) is None
    for _ in range(100):
        assert finder.feed(b"\r\n-" * 10_000) is None
        assert len(finder._held) < 20


@pytest.mark.parametrize(
    "form",
    [
        FILE + LAST,
        part("model", b"") + LAST,
        part("model", b"\xff\xfe") + LAST,
        part("model", b"x" * 2000) + LAST,
        b"------x 12junk\r\n\r\n",
        b"------x 12\r\nX: " + b"y" * 10_000,
    ],
)
def test_forms_without_a_model_say_so(form):
    with pytest.raises(BadForm):
        find([form])
    with pytest.raises(BadForm):
        find([bytes([byte]) for byte in form])


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 71]
)
def test_a_form_without_a_boundary_is_refused(kind):
    with pytest.raises(BadForm):
        FieldFinder(kind, "model")


def upload(body: bytes, length: int | None = None) -> bytes:
    return (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gw\r\nContent-Type: {KIND}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


@pytest.mark.parametrize("form", [MODEL + FILE + LAST, FILE + MODEL + LAST])
async def test_a_form_is_forwarded_as_it_came(gateway, replica, form):
    one = await replica()
    gateway.model("m", one, aliases=("größe/1",))
    assert (await gateway.ask(upload(form))).body == form
    assert one.seen[0]["Content-Type"] == KIND
    chunked = upload(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert (await gateway.ask(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(form), form))).body == form


async def test_files_after_the_model_stream(gateway, replica, kit):
    """The replica gets the file while it is still being sent: no part of it waits for the rest."""
    import asyncio

    got = asyncio.Event()

    async def answer(seen, writer, reader):
        await reader.readuntil(b"first half")
        got.set()
        await reader.readuntil(b"second half")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    gateway.model("m", await replica(answer, read_body=False), aliases=("größe/1",))
    client = await gateway.client()
    start, rest = MODEL + part("file", b"first half")[:-2], b"second half\r\n" + LAST
    client.send(upload(start, len(start) + len(rest)))
    await asyncio.wait_for(got.wait(), 5)
    client.send(rest)
    assert (await client.response()).body == b"ok"


async def test_a_file_larger_than_the_bound_before_the_model_is_413(gateway, replica):
    one = await replica()
    gateway.model("m", one)
    client = await gateway.client()
    client.send(upload(part("file", b"")[:-2], 4 * openai.MAX_BODY))
    for _ in range(17):
        client.send(b"x" * 2**20)
    answer = await client.response()
    assert answer.status == 413
    assert "model" in json.loads(answer.body)["error"]["message"]
    assert not one.seen


@pytest.mark.parametrize("form", [FILE + LAST, FILE, b"", LAST])
async def test_a_form_without_a_model_is_400(gateway, form):
    answer = await gateway.ask(upload(form))
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
