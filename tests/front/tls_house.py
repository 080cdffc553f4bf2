"""Certificates made for a test, and a house whose ports speak TLS with them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from front_house import House

from millstream.clock import Clock, SystemClock
from millstream.front import Http, HttpLimits
from millstream.front.grpc import Grpc, GrpcLimits
from millstream.front.grpc.service import Inference
from millstream.guard.tls import Tls, TlsSettings
from millstream.meter import Meter

NAMES = ("127.0.0.1", "localhost")


def days(n: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=n)


class Files:
    """A folder with the files of TLS. `issue` writes the service's pair anew, from another CA if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca, self.clients = folder, trustme.CA(), trustme.CA()
        folder.mkdir(exist_ok=True)
        self.settings = TlsSettings(certificate="cert.pem", key="key.pem")
        self.mutual = TlsSettings(certificate="cert.pem", key="key.pem", client_ca="clients.pem")
        self.issue()
        self.trust(self.clients)
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))

    def issue(self, ends_days: float = 30, begins_days: float = -1) -> None:
        cert = self.ca.issue_cert(*NAMES, not_before=days(begins_days), not_after=days(ends_days))
        (self.folder / "cert.pem").write_bytes(b"".join(one.bytes() for one in cert.cert_chain_pems))
        (self.folder / "key.pem").write_bytes(cert.private_key_pem.bytes())

    def trust(self, ca: trustme.CA) -> None:
        (self.folder / "clients.pem").write_bytes(ca.cert_pem.bytes())

    def client(self, name: str = "shop", ends_days: float = 30) -> tuple[Path, Path]:
        """(certificate, key) of a client that the service trusts."""
        cert = self.clients.issue_cert(f"{name}@example.org", common_name=name, not_after=days(ends_days))
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(b"".join(one.bytes() for one in cert.cert_chain_pems))
        paths[1].write_bytes(cert.private_key_pem.bytes())
        return paths

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client that trusts our CA connects with."""
        made = ssl.create_default_context()
        self.ca.configure_trust(made)
        if client is not None:
            made.load_cert_chain(*client)
        return made


class SecureHouse:
    """`async with SecureHouse(files) as house:`; HTTP at `port`, gRPC at `grpc_port`."""

    def __init__(
        self,
        files: Files,
        mutual: bool = False,
        clock: Clock | None = None,
        http: HttpLimits | None = None,
        grpc: GrpcLimits | None = None,
    ) -> None:
        self.meter, clock = Meter(), clock or SystemClock()
        self.tls = Tls(files.mutual if mutual else files.settings, files.folder, SystemClock(), self.meter)
        self.door = House(self.meter)
        self.http = Http(self.door, self.meter, clock, http, tls=self.tls.http)
        self.grpc = Grpc(Inference(self.door, clock), self.meter, clock, grpc, tls=self.tls.grpc)
        self.port = self.grpc_port = 0

    async def __aenter__(self) -> SecureHouse:
        self.port = await self.http.start(port=0)
        self.grpc_port = await self.grpc.start(port=0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for port in (self.http, self.grpc):
            for connection in tuple(port.connections):
                connection.abort()
            await port.stop()

    def counted(self, name: str, port: str = "http") -> float:
        return self.meter.counter(name, "", {"port": port}).value
