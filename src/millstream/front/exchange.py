"""One request as read from a connection, the route it takes, and the answer it waits for.

Rules of the room:
- An exchange gets its answer exactly once: at once, or when a future is done. It costs no task.
- No answer but 2xx leaves without a sentence; what is not an error of ours is logged here, with its trace.
- A large answer that a client wants compressed is compressed beside the event loop, as it would hold up the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from millstream import errors
from millstream.front import answer, encoding
from millstream.front.bugs import told
from millstream.front.codec import Layout, Plan
from millstream.front.record import Record

if TYPE_CHECKING:
    from millstream.front.http import Http

log = logging.getLogger(__name__)

LABELS = ("infer", "recommend", "outcomes", "models", "repository", "health", "metrics", "other", "traffic", "speech")
INFER, RECOMMEND, OUTCOMES, MODELS, REPOSITORY, HEALTH, METRICS, OTHER, TRAFFIC, SPEECH = range(len(LABELS))
READ = (b"GET", b"HEAD")
WRITE = (b"POST",)
PACKED_HERE_BYTES_MAX = 64 << 10
OPENAI = b"/v1/audio/"
"""How routes begin whose clients are OpenAI's."""
_PACKED = frozenset((INFER, RECOMMEND, METRICS))


class Exchange:
    """One request as read from a connection, and the answer it waits for. `flush` tells the connection of an answer."""

    # Slots, as every request makes one of these and reads most of it.
    __slots__ = (
        "accepts",
        "answer",
        "authorization",
        "body",
        "close",
        "coding",
        "encode",
        "explain",
        "flush",
        "future",
        "held",
        "ident",
        "inference_header",
        "keep",
        "label",
        "layout",
        "linger",
        "method",
        "origin",
        "peer",
        "plan",
        "record",
        "request_id",
        "started",
        "status",
        "takes_over",
        "traceparent",
        "upgrade",
        "url",
    )
    # What `encode` needs of an infer request.
    encode: Callable[[Exchange, Any], bytes]
    plan: Plan
    layout: Layout
    ident: bytes

    def __init__(self, flush: Callable[[], None], peer: str, started: float) -> None:
        self.flush = flush
        self.peer = peer
        self.started = started
        self.url = self.method = b""
        self.body: bytes | bytearray = b""
        self.inference_header: bytes | None = None
        self.authorization: bytes | None = None
        self.request_id: bytes | None = None
        self.origin: bytes | None = None  # of a web page
        self.accepts: bytes | None = None  # Accept-Encoding
        self.coding: bytes | None = None  # that the body still has
        self.traceparent: bytes | None = None
        self.upgrade: dict[bytes, bytes] | None = None  # what a client says that wants another protocol
        self.takes_over: Callable[[Http], asyncio.Protocol] | None = None  # makes it, once the answer is sent
        self.record: Record | None = None  # where somebody observes
        self.answer: bytes | None = None
        self.future: asyncio.Future[Any] | None = None
        self.label = OTHER
        self.status = 200
        self.held = 0  # bytes of the body that count against `held_bytes_max`
        self.explain = False
        self.close = False  # the last of its connection
        self.keep = False  # HTTP/1.0 that asked for keep-alive
        self.linger = False  # the client may still be sending

    def wait(self, future: asyncio.Future[Any], encode: Callable[[Exchange, Any], bytes]) -> None:
        """Answer with what `encode` makes of the future's result: now, if it is done."""
        self.encode = encode
        if not future.done():
            self.future = future
            future.add_done_callback(self.settle)
            return
        try:
            self.answer = encode(self, future.result())
        except asyncio.CancelledError:
            raise errors.Busy("the service stopped before an answer was ready: ask again") from None

    def settle(self, future: asyncio.Future[Any]) -> None:
        """The Door's future is done: make the answer."""
        self.future = None
        try:
            self.answer = self.encode(self, future.result())
            if self.accepts is not None:
                self.pack()
        except asyncio.CancelledError:
            self.refuse(errors.Busy("the service stopped before an answer was ready: ask again"))
        except Exception as error:
            self.refuse(error)
        self.flush()

    def reply(self, document: object) -> None:
        """Answer with a JSON document."""
        self.answer = answer.answer(orjson.dumps(document))

    def refuse(self, error: Exception) -> None:
        """Answer with what went wrong; a bug of ours is logged and says nothing more."""
        if isinstance(error, errors.Misconfigured) and self.label in (REPOSITORY, TRAFFIC):
            error = answer.Unloadable(str(error))
        if not told(log, error, f"{self.method.decode()} {ascii(self.url)[2:-1]} failed"):
            error = RuntimeError()
        self.status, self.answer = answer.refusal(error, nested=self.url.startswith(OPENAI))

    def pack(self) -> None:
        """Compress the answer as the client asks: here, or beside the event loop if it is large.

        The small documents stay plain: Triton's asyncio client asks for compression everywhere and unpacks infer alone.
        """
        whole = self.answer
        assert whole is not None and self.accepts is not None
        if (
            self.label not in _PACKED
            or len(whole) < encoding.PACKED_BYTES_MIN
            or (coding := encoding.chosen(self.accepts[:256])) is None
        ):
            return
        if len(whole) <= PACKED_HERE_BYTES_MAX:
            self.answer = encoding.pack(whole, coding)
            return
        self.answer = None
        self.future = asyncio.get_running_loop().run_in_executor(None, encoding.pack, whole, coding)
        self.future.add_done_callback(self._packed)

    def _packed(self, future: asyncio.Future[bytes]) -> None:
        self.future = None
        if not future.cancelled():  # else nobody is there to read it
            self.answer = future.result()
            self.flush()


class Route(msgspec.Struct, frozen=True):
    """`run` starts an exchange; `allow` is the value of the Allow header."""

    label: int
    methods: tuple[bytes, ...]
    run: Callable[[Exchange], None]

    @property
    def allow(self) -> str:
        """The methods, as the header has them."""
        return ", ".join(method.decode() for method in self.methods)


def no_page(exchange: Exchange) -> None:
    """Refuse what a web page sends: a browser on this machine would let any page control it. Forbidden."""
    if exchange.origin is not None:
        raise errors.Forbidden("Origin: web pages may not do this here; send it from a program, without that header")
