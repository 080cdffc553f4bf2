"""Where the transport of gRPC and the service behind it meet: one object of each for every call.

Rules of the room:
- The transport makes a `Call` and opens a `Receiver` for it; both live on the event loop and never block.
- `Receiver` gets messages in order, then `ended`; or at any time `cancelled`, and nothing after that.
- `Call` takes messages in order, then exactly one `finish`. After `cancelled` it takes everything and does nothing.
- What a service raises from `open`, `message` or `ended` ends that call as `finish` would, and nothing follows.
"""

from __future__ import annotations

from typing import Protocol

from millstream.front.record import Record


class Call(Protocol):
    """One call as the transport holds it. `path`: b"/package.Service/Method"; `metadata`: lower-case keys, the last
    value of each, shared between calls and never to be changed; `timeout_s`: the client's grpc-timeout, 0 when it set
    none. The transport enforces it: the client gets DEADLINE_EXCEEDED, the receiver `cancelled`. `record`: what the
    service knows of the call, for the transport to hand on when it is over. `streams`: set by the service of a call of
    many messages, which may take its time before the first."""

    path: bytes
    metadata: dict[bytes, bytes]
    peer: str
    timeout_s: float
    record: Record | None
    streams: bool

    @property
    def waiting(self) -> bool:
        """Whether messages wait for the client to read those before them."""

    def send(self, message: bytes, metadata: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Send a message. `metadata` goes out before the first message of the call and is dropped with later ones."""

    def finish(self, error: Exception | None = None) -> None:
        """End the call: OK, or the code and sentence of an errors.Error; anything else is INTERNAL and says nothing."""

    def hold(self) -> None:
        """Take no more messages from this client for now: as many wait as may."""

    def go_on(self) -> None:
        """Take messages again."""


class Receiver(Protocol):
    """One call as the service holds it."""

    def message(self, data: bytes) -> None:
        """A whole message, unpacked."""

    def ended(self) -> None:
        """The client has sent its last message."""

    def cancelled(self) -> None:
        """The client is gone, its time is over, or it changed its mind: give up what was asked."""


class Service(Protocol):
    """What is behind a port of gRPC."""

    def open(self, call: Call) -> Receiver:
        """Begin a call. Raises errors.Missing for a method that does not exist, Unauthenticated and so on."""
