"""The gateway's certificate: read from two PEM files, and read again when they change.

New connections get the new certificate; those that are open go on with what they have. Files that do not belong
together, as halfway through an exchange of both, are left alone until they do.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final

log = logging.getLogger("gateway.tls")

_LOOK_S: Final = 1.0
_Stamp = tuple[tuple[int, int, int], tuple[int, int, int]]


class BadCertificate(Exception):
    """A certificate that cannot be used; the text says why and what to mend."""


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """A server's context. Raises BadCertificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        _read(context, certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise BadCertificate(_why(error, certificate, key)) from None
    return context


class Certificate:
    """A context that follows its files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises BadCertificate."""
        self._certificate = certificate
        self._key = key
        self._seen = self._stamp()
        self.context = load(certificate, key)
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Look for changes from now on."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self.watch()
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return
        self._seen = stamp
        try:
            load(self._certificate, self._key)
            _read(self.context, self._certificate, self._key)
        except (BadCertificate, OSError, ssl.SSLError) as error:
            log.warning("the changed certificate is not taken: %s", error)
            return
        log.info("new connections get the changed certificate %s", self._certificate)

    def _stamp(self) -> _Stamp | None:
        try:
            one, other = self._certificate.stat(), self._key.stat()
        except OSError:
            return None
        return (one.st_mtime_ns, one.st_size, one.st_ino), (other.st_mtime_ns, other.st_size, other.st_ino)


def _no_passphrase() -> bytes:
    raise OSError(0, "it wants a passphrase; give a key without one")


def _read(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    context.load_cert_chain(certificate, key, password=_no_passphrase)


def _why(error: OSError, certificate: Path, key: Path) -> str:
    if isinstance(error, ssl.SSLError):
        told = (error.reason or "not a PEM file").replace("_", " ").lower()
        return f"--tls-cert {certificate} and --tls-key {key}: {told}; give a PEM chain and its private key"
    missing = next((path for path in (certificate, key) if not path.exists()), None)
    flag = "--tls-key" if missing is None or missing == key else "--tls-cert"
    return f"{flag} {missing or key}: {error.strerror or error}"
