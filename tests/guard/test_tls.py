"""The certificate in force: what is read, what replaces it, and what is said about its end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from millstream.clock import FakeClock
from millstream.errors import Misconfigured
from millstream.guard.tls import Tls, TlsSettings, validity
from millstream.meter import Meter

DAY_S = 86400.0
PAIR = TlsSettings(certificate="cert.pem", key="key.pem")
NOW = 1_800_000_000.0


def write(folder: Path, ends_days: float = 90, begins_days: float = -1, ca: trustme.CA | None = None) -> None:
    cert = (ca or trustme.CA()).issue_cert(
        "localhost",
        not_before=datetime.fromtimestamp(NOW + begins_days * DAY_S, UTC),
        not_after=datetime.fromtimestamp(NOW + ends_days * DAY_S, UTC),
    )
    (folder / "cert.pem").write_bytes(b"".join(one.bytes() for one in cert.cert_chain_pems))
    (folder / "key.pem").write_bytes(cert.private_key_pem.bytes())


class Kept:
    """A Tls over a folder, under a fake clock."""

    def __init__(self, folder: Path, settings: TlsSettings = PAIR) -> None:
        self.meter, self.clock = Meter(), FakeClock(NOW)
        self.tls = Tls(settings, folder, self.clock, self.meter)
        self.first = self.tls.http()

    async def _pass(self, seconds: int) -> None:
        keep = asyncio.ensure_future(self.tls.keep())
        for _ in range(seconds):
            await asyncio.sleep(0.05)
            self.clock.advance(1.0)
        await asyncio.sleep(0.2)
        keep.cancel()

    def pass_time(self, seconds: int) -> None:
        asyncio.run(self._pass(seconds))

    def total(self, name: str) -> float:
        return self.meter.sum(f"millstream_certificates_{name}_total")

    @property
    def left_s(self) -> float:
        return self.meter.sum("millstream_certificate_expires_seconds")


@pytest.mark.parametrize("year", [1999, 2027, 2049, 2051, 2120])
def test_the_dates_of_a_certificate_are_read(year: int) -> None:
    ends = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    cert = trustme.CA().issue_cert("localhost", not_before=ends - timedelta(days=9), not_after=ends)
    pem = b"".join(one.bytes() for one in cert.cert_chain_pems).decode()
    assert validity("a note\n" + pem) == ((ends - timedelta(days=9)).timestamp(), ends.timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nMIIBAgMEBQYH\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_no_certificate_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        validity(text)


def test_settings_and_files_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="without a certificate"):
        TlsSettings(key="key.pem")
    with pytest.raises(Misconfigured, match=r"cert\.pem: No such file"):
        Kept(tmp_path)
    write(tmp_path)
    key = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").write_bytes(b"no key")
    with pytest.raises(Misconfigured, match="no pair that can be used"):
        Kept(tmp_path)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(Misconfigured, match=r"ca\.pem: no certificate in it"):
        Kept(tmp_path, TlsSettings(certificate="cert.pem", key="key.pem", client_ca="ca.pem"))
    (tmp_path / "cert.pem").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="it wants PEM"):
        Kept(tmp_path)


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    write(tmp_path)
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    (tmp_path / "key.pem").write_bytes(locked)
    with pytest.raises(Misconfigured, match="wants a passphrase"):
        Kept(tmp_path)


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    write(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "cert.pem").read_bytes())
    assert Kept(tmp_path, TlsSettings(certificate="both.pem")).left_s == pytest.approx(90 * DAY_S)


def test_a_changed_certificate_is_in_force_within_a_second(tmp_path: Path) -> None:
    write(tmp_path)
    kept = Kept(tmp_path)
    kept.pass_time(3)
    assert kept.tls.http() is kept.first and kept.total("loaded") == 0
    write(tmp_path, ends_days=200)
    kept.pass_time(1)
    assert kept.tls.http() is not kept.first and kept.total("loaded") == 1
    assert kept.left_s == pytest.approx(200 * DAY_S, abs=10)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: write(folder, ends_days=-0.5), "expired on"),
        (lambda folder: write(folder, begins_days=5), "is valid from"),
        (lambda folder: (folder / "cert.pem").write_text("rubbish"), "no certificate in it"),
        (lambda folder: (folder / "cert.pem").unlink(), "No such file"),
        (lambda folder: (folder / "key.pem").write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes()), "pair"),
    ],
    ids=["expired", "not yet valid", "rubbish", "gone", "another key"],
)
def test_a_replacement_that_cannot_be_used_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: object, says: str
) -> None:
    write(tmp_path)
    kept = Kept(tmp_path)
    change(tmp_path)  # type: ignore[operator]
    kept.pass_time(5)
    assert kept.tls.http() is kept.first and kept.total("refused") == 1 and kept.total("loaded") == 0
    said = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(said) == 1 and says in said[0] and "the certificate in force stays" in said[0]
    write(tmp_path)
    kept.pass_time(1)
    assert kept.tls.http() is not kept.first and kept.total("loaded") == 1


def test_the_moment_between_the_two_files_of_a_replacement_is_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    kept = Kept(tmp_path)
    old = (tmp_path / "key.pem").read_bytes()
    write(tmp_path)
    new = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").write_bytes(old)
    kept.pass_time(1)
    assert kept.tls.http() is kept.first
    (tmp_path / "key.pem").write_bytes(new)
    kept.pass_time(1)
    assert kept.tls.http() is not kept.first and kept.total("refused") == 0
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_a_replacement_that_is_valid_later_comes_into_force_then(tmp_path: Path) -> None:
    write(tmp_path)
    kept = Kept(tmp_path)
    write(tmp_path, begins_days=2)
    kept.pass_time(2)
    assert kept.tls.http() is kept.first
    kept.clock.advance(2 * DAY_S)
    kept.pass_time(1)
    assert kept.tls.http() is not kept.first


def test_an_expired_certificate_is_served_at_the_start_and_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, ends_days=-0.5)
    kept = Kept(tmp_path)
    assert kept.left_s == pytest.approx(-0.5 * DAY_S)
    assert [one.levelno for one in caplog.records] == [logging.ERROR] and "HAS EXPIRED" in caplog.text


def test_its_end_is_announced_daily_from_fourteen_days_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ends_days=14.5)
    kept = Kept(tmp_path)
    kept.pass_time(1)
    assert not caplog.records
    for _ in range(4):
        kept.clock.advance(DAY_S / 2)
        kept.pass_time(1)
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert 2 <= len(said) <= 3 and "expires in 14.0 days" in said[0]


@pytest.mark.parametrize("certificate", ["expired since the start", "now an expired one", "now rubbish"])
def test_a_changed_client_ca_is_in_force_whatever_is_wrong_with_the_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, certificate: str
) -> None:
    before, after = trustme.CA(), trustme.CA()
    write(tmp_path, ends_days=-0.5 if "start" in certificate else 90)
    (tmp_path / "ca.pem").write_bytes(before.cert_pem.bytes())
    kept = Kept(tmp_path, TlsSettings(certificate="cert.pem", key="key.pem", client_ca="ca.pem"))
    if "expired one" in certificate:
        write(tmp_path, ends_days=-0.5)
    elif "rubbish" in certificate:
        (tmp_path / "cert.pem").write_text("rubbish")
    (tmp_path / "ca.pem").write_bytes(after.cert_pem.bytes())
    kept.pass_time(3)
    for context in (kept.tls.http(), kept.tls.grpc()):
        assert context is not kept.first
        assert context.get_ca_certs(True) == [ssl.PEM_cert_to_DER_cert(after.cert_pem.bytes().decode())]
    made = kept.tls.http()
    kept.pass_time(2)
    assert kept.tls.http() is made, "once"
