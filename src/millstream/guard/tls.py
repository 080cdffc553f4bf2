"""The certificate of the service: read, watched, and replaced while it runs.

Rules of the room:
- TLS 1.2 or later. With `client_ca` every client must show a certificate that it signed, in TLS 1.3: before, the whole
  network could see that certificate, and a session could be resumed without showing it again.
- A client's certificate opens the connection. What may be done on it the API key says: see auth.py.
- Changed files are looked at every second and are in force for the next connection. A certificate that is broken,
  expired or not valid yet changes nothing: the one in force stays, which is counted, and said once. A changed
  `client_ca` does not wait for it: who was let in may be no longer.
- A start with an expired certificate serves it and says so: clients that do not check still get answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from millstream.clock import Clock
from millstream.errors import Misconfigured
from millstream.meter import Meter

logger = logging.getLogger(__name__)

LOOK_S = 1.0
DAY_S = 86400.0
WARN_S = 14 * DAY_S
H2, HTTP = "h2", "http/1.1"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The files of TLS, in PEM; names are relative to the installation's folder."""

    certificate: Annotated[
        str, Meta(description="the service's certificate and what signed it, in this order; empty: no TLS")
    ] = ""
    key: Annotated[str, Meta(description="its private key, without a passphrase; empty: beside the certificate")] = ""
    client_ca: Annotated[
        str, Meta(description="who signs the certificates that clients must show; empty: they show none")
    ] = ""

    def __post_init__(self) -> None:
        if (self.key or self.client_ca) and not self.certificate:
            raise Misconfigured("tls: a key or a client_ca without a certificate: name the certificate too")


class _Pair(msgspec.Struct, frozen=True):
    """What the files hold: the certificate and its key, in PEM, and when it is valid, in unix seconds."""

    certificate: bytes
    key: bytes
    begins: float
    ends: float


class Tls:
    """The contexts of a service's ports. `keep` watches the files. Raises Misconfigured where they cannot be used."""

    def __init__(self, settings: TlsSettings, folder: Path, clock: Clock, meter: Meter) -> None:
        self._certificate = folder / settings.certificate
        self._key = folder / settings.key if settings.key else self._certificate
        self._client_ca = folder / settings.client_ca if settings.client_ca else None
        self._clock = clock
        self._left = meter.gauge(
            "millstream_certificate_expires_seconds", "Until the certificate in force expires", joined="min"
        )
        self._refused = meter.counter(
            "millstream_certificates_refused_total", "Changed certificates that were not taken into force"
        )
        self._loaded = meter.counter("millstream_certificates_loaded_total", "Certificates taken into force")
        self._said_day: int | None = None
        self._said_why: tuple[object, str] | None = None
        self._suspect: object = None
        self._stamp = self._stamps()
        self._pair = self._read()
        self._contexts = self._made(self._pair)
        self._tell()

    def http(self) -> ssl.SSLContext:
        """The context in force for HTTP."""
        return self._contexts[HTTP]

    def grpc(self) -> ssl.SSLContext:
        """The context in force for gRPC."""
        return self._contexts[H2]

    async def keep(self) -> None:
        """Look at the files and the date every second, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            if self._stamps() != self._stamp:
                await asyncio.to_thread(self.look)
            self._tell()

    def look(self) -> None:
        """Take the files into force if they changed and can be used."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        pair, why = self._pair, ""
        try:
            if stamp[:2] != self._stamp[:2]:
                pair = self._valid()
            contexts = self._made(pair)
        except Misconfigured as error:
            pair, why = self._pair, str(error)
        if not why:
            self._stamp, self._pair, self._contexts, self._suspect = stamp, pair, contexts, None
            self._loaded.add()
            logger.info("%s: in force for new connections, until %s", self._certificate, self._until)
            return
        self._keep_old(stamp, why)
        if stamp[2:] != self._stamp[2:]:
            with suppress(Misconfigured):  # it is the CA that cannot be used, which has been said
                self._contexts = self._made(pair)
                self._stamp = [*self._stamp[:2], *stamp[2:]]
                logger.info("%s: in force for new connections", self._client_ca)

    def _valid(self) -> _Pair:
        """What the files hold, if it may come into force. Misconfigured."""
        pair, now = self._read(), self._clock.now()
        if not pair.begins <= now < pair.ends:
            when = f"expired on {_date(pair.ends)}" if now >= pair.ends else f"is valid from {_date(pair.begins)}"
            raise Misconfigured(f"{self._certificate}: it {when}, and the clock says {_date(now)}")
        return pair

    def _keep_old(self, stamp: object, why: str) -> None:
        """Say once what is wrong, but not in the moment between two files of a replacement."""
        if stamp != self._suspect:
            self._suspect = stamp
        elif self._said_why != (stamp, why):
            self._said_why = (stamp, why)
            self._refused.add()
            logger.error("%s; the certificate in force stays, until %s", why, _date(self._pair.ends))

    def _tell(self) -> None:
        """The time that is left: to the meter, and to the log once a day when it gets short."""
        left = self._pair.ends - self._clock.now()
        self._left.set(left)
        day = int(left // DAY_S)
        if left > WARN_S:
            self._said_day = None
        elif day != self._said_day:
            self._said_day = day
            if left > 0:
                logger.warning("%s expires in %.1f days (%s): renew it", self._certificate, left / DAY_S, self._until)
            else:
                logger.error("%s HAS EXPIRED (%s): clients refuse it; renew it", self._certificate, self._until)

    @property
    def _until(self) -> str:
        return _date(self._pair.ends)

    def _files(self) -> list[Path]:
        return [self._certificate, self._key, *([self._client_ca] if self._client_ca else [])]

    def _stamps(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for path in self._files():
            try:
                one = path.stat()
                found.append((one.st_mtime_ns, one.st_size, one.st_ino))
            except OSError:
                found.append(None)
        return found

    def _read(self) -> _Pair:
        """What the files hold now. Misconfigured."""
        found = []
        for path in self._files():
            try:
                found.append(path.read_bytes())
            except OSError as error:
                raise Misconfigured(f"{path}: {error.strerror}; name a PEM file that can be read") from None
        try:
            begins, ends = validity(found[0].decode("ascii"))
        except ValueError:
            raise Misconfigured(
                f"{self._certificate}: no certificate in it; it wants PEM, the service's own first"
            ) from None
        return _Pair(found[0], found[1], begins, ends)

    def _made(self, pair: _Pair) -> dict[str, ssl.SSLContext]:
        """A context a protocol, with the CA as it is now. Misconfigured."""
        with _file(pair.certificate) as certificate, _file(pair.key) as key:
            return {protocol: self._context(protocol, certificate, key) for protocol in (H2, HTTP)}

    def _context(self, protocol: str, certificate: str, key: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols([protocol])
        try:
            made.load_cert_chain(certificate, key, password=_no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise Misconfigured(
                f"{self._certificate} and {self._key} are no pair that can be used: {_why(error)}"
            ) from None
        if self._client_ca is not None:
            made.minimum_version = ssl.TLSVersion.TLSv1_3
            made.num_tickets = 0
            made.verify_mode = ssl.CERT_REQUIRED
            try:
                made.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                raise Misconfigured(f"{self._client_ca}: no certificate in it: {_why(error)}") from None
        return made


@contextmanager
def _file(pem: bytes) -> Iterator[str]:
    """A name for what is in memory, as OpenSSL reads files alone; a key that is in force is on no other disk for it."""
    with os.fdopen(os.memfd_create("pem"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(pem)
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _why(error: Exception) -> str:
    """OpenSSL shouts with underscores."""
    return str(getattr(error, "reason", "") or error).replace("_", " ").lower()


def _no_passphrase() -> str:
    raise ValueError("the key wants a passphrase, and nobody is there to type it: store it without one")


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def validity(pem: str) -> tuple[float, float]:
    """When the first certificate of a PEM file begins and ends, in unix seconds (RFC 5280, 4.1). ValueError."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("no certificate")
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0])
        fields = _children(_children(der)[0][1])  # tbsCertificate
        if fields[0][0] == 0xA0:  # the version, which may be left out
            del fields[0]
        begins, ends = _children(fields[3][1])[:2]  # after serial number, algorithm and issuer
        return _time(*begins), _time(*ends)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("no certificate") from error


def _children(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of what a constructed value holds; of a whole certificate, of its outer sequence."""
    if der[:1] == b"\x30" and _element(der, 0)[2] == len(der):
        der = _element(der, 0)[1]
    found, at = [], 0
    while at < len(der):
        tag, content, at = _element(der, at)
        found.append((tag, content))
    return found


def _element(der: bytes, at: int) -> tuple[int, bytes, int]:
    """(tag, content, where it ends) of the DER element at an offset."""
    tag, size, at = der[at], der[at + 1], at + 2
    if size & 0x80:
        length = size & 0x7F
        size, at = int.from_bytes(der[at : at + length], "big"), at + length
    if at + size > len(der):
        raise IndexError
    return tag, der[at : at + size], at + size


def _time(tag: int, content: bytes) -> float:
    """A UTCTime (two digits of the year: from 1950) or a GeneralizedTime."""
    text = content.decode("ascii")
    if tag == 0x17:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
