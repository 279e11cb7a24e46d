"""TLS in front: what is served, and a certificate that changes while connections are open."""

from __future__ import annotations

import asyncio
import random
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from gateway.app import Front
from gateway.listener import listening_socket
from gateway.proxy import Proxy
from gateway.tls import BadCertificate, Certificate, load

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make certificates"
)

GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own signing, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", "req", "-x509", *kind.split(), "-subj", f"/CN={name}", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture
def files(tmp_path):
    return make(tmp_path, "first")


@pytest.fixture
async def front(gateway, files):
    certificate = Certificate(*files)
    made = Front(Proxy(gateway.engine, random.Random(1)), listening_socket("127.0.0.1", 0), certificate.context)
    await made.start()
    certificate.watch()
    yield made
    made.hasten()
    await made.drain(1)
    certificate.close()


async def connect(front: Front, trusted: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=str(trusted))
    return await asyncio.open_connection("127.0.0.1", front.port, ssl=context, server_hostname="localhost")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(GET)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readline()
    return head.split(b"\r\n")[0]


async def test_requests_over_tls(front, files):
    reader, writer = await connect(front, files[0])
    assert await ask(reader, writer) == b"HTTP/1.1 200 OK"
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
    writer.close()


async def test_the_model_hears_that_it_was_https(gateway, front, files, replica):
    one = await replica()
    gateway.model("m", one)
    reader, writer = await connect(front, files[0])
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(5):
        await reader.readuntil(b"\r\n\r\n{}")
    assert one.seen[0]["x-forwarded-proto"] == "https"
    writer.close()


async def test_a_new_certificate_is_taken_and_open_connections_go_on(front, files, tmp_path):
    held = await connect(front, files[0])
    assert await ask(*held) == b"HTTP/1.1 200 OK"
    for new, old in zip(make(tmp_path, "second"), files, strict=True):
        new.replace(old)
    for _ in range(100):
        try:
            fresh = await connect(front, files[0])
            break
        except ssl.SSLCertVerificationError:
            await asyncio.sleep(0.1)
    else:
        pytest.fail("the changed certificate was not taken")
    subject = fresh[1].get_extra_info("peercert")["subject"]
    assert subject == ((("commonName", "second"),),)
    assert await ask(*held) == b"HTTP/1.1 200 OK"
    assert await ask(*fresh) == b"HTTP/1.1 200 OK"
    for _, writer in (held, fresh):
        writer.close()


async def test_half_an_exchange_is_waited_out(front, files, tmp_path, caplog, kit):
    trusted = tmp_path / "trusted.pem"
    shutil.copy(files[0], trusted)
    second, _ = make(tmp_path, "second")
    second.replace(files[0])
    await kit.until(lambda: "is not taken" in caplog.text)
    reader, writer = await connect(front, trusted)
    assert await ask(reader, writer) == b"HTTP/1.1 200 OK"
    writer.close()


def test_what_cannot_be_served_is_said_plainly(files, tmp_path):
    with pytest.raises(BadCertificate, match="no-such"):
        load(tmp_path / "no-such.pem", files[1])
    other = make(tmp_path, "other")
    with pytest.raises(BadCertificate, match="key values mismatch"):
        load(files[0], other[1])
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BadCertificate, match="PEM"):
        load(tmp_path / "text", tmp_path / "text")
