"""Which call a URL means: the table of routes, and the life of one exchange between socket and Door.

Rules of the room:
- A route is found by the raw bytes of the URL; one that a model answered is remembered, with its `Plan`.
- An exchange gets its answer exactly once: at once, or when the Door's future is done. It costs no task.
- No answer but 2xx leaves without a sentence; what is not an error of ours is logged here, with its trace.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
import orjson

import millstream
from millstream import errors
from millstream.clock import Clock
from millstream.front import answer, recommend
from millstream.front.codec import TEXT_CHARS_MAX, Layout, Plan
from millstream.front.door import Door
from millstream.front.limits import HttpLimits
from millstream.meter import Meter
from millstream.types import Description, Principal, Request, TensorSpec

log = logging.getLogger(__name__)

ROUTES_MAX = 1024
LABELS = ("infer", "recommend", "outcomes", "models", "health", "metrics", "other")
INFER, RECOMMEND, OUTCOMES, MODELS, HEALTH, METRICS, OTHER = range(len(LABELS))
WHERE = "GET / lists the routes"
ROUTES = {
    "service": "GET /v2, /v2/health/live, /v2/health/ready",
    "models": "GET /v2/models, /v2/models/MODEL[/versions/VERSION][/ready]",
    "infer": "POST /v2/models/MODEL[/versions/VERSION]/infer",
    "recommend": "POST /v1/recommend",
    "outcomes": "POST /v1/outcomes",
    "metrics": "GET /metrics",
}


class Exchange:
    """One request as read from a connection, and the answer it waits for. `flush` tells the connection of an answer."""

    # Class attributes are the defaults: most exchanges set few of them.
    url = method = b""
    body: bytes | bytearray = b""
    inference_header: bytes | None = None
    authorization: bytes | None = None
    request_id: bytes | None = None
    label = OTHER
    status = 200
    answer: bytes | None = None
    future: asyncio.Future[Any] | None = None
    held = 0  # bytes of the body that count against `held_bytes_max`
    close = False  # the last of its connection
    keep = False  # HTTP/1.0 that asked for keep-alive
    linger = False  # the client may still be sending
    # What `encode` needs of an infer request.
    encode: Callable[[Exchange, Any], bytes]
    plan: Plan
    layout: Layout
    ident: bytes

    def __init__(self, flush: Callable[[], None], peer: str, started: float) -> None:
        self.flush = flush
        self.peer = peer
        self.started = started

    def settle(self, future: asyncio.Future[Any]) -> None:
        """The Door's future is done: make the answer."""
        self.future = None
        try:
            self.answer = self.encode(self, future.result())
        except asyncio.CancelledError:
            self.refuse(errors.Busy("the service stopped before an answer was ready: ask again"))
        except Exception as error:
            self.refuse(error)
        self.flush()

    def refuse(self, error: Exception) -> None:
        """Answer with what went wrong; a bug of ours is logged and says nothing more."""
        if not isinstance(error, errors.Error) or type(error) is errors.Error:
            log.error("%s %s failed", self.method.decode(), ascii(self.url)[2:-1], exc_info=error)
            error = RuntimeError()
        self.status, self.answer = answer.refusal(error)


class Route(msgspec.Struct, frozen=True):
    """`run` starts an exchange; `allow` is the value of the Allow header."""

    label: int
    methods: tuple[bytes, ...]
    run: Callable[[Exchange], None]

    @property
    def allow(self) -> str:
        """The methods, as the header has them."""
        return ", ".join(method.decode() for method in self.methods)


READ = (b"GET", b"HEAD")
WRITE = (b"POST",)


class Routes:
    """The table. `begin` starts an exchange; `count` meters it once its answer is on its way."""

    def __init__(self, door: Door, meter: Meter, clock: Clock, limits: HttpLimits) -> None:
        self._door, self._limits, self._monotonic = door, limits, clock.monotonic
        self._fixed = {
            b"/": Route(OTHER, READ, self._root),
            b"/v2": Route(OTHER, READ, self._server),
            b"/v2/": Route(OTHER, READ, self._server),
            b"/v2/health/live": Route(HEALTH, READ, self._live),
            b"/v2/health/ready": Route(HEALTH, READ, self._ready),
            b"/v2/models": Route(MODELS, READ, self._models),
            b"/v1/recommend": Route(RECOMMEND, WRITE, self._recommend),
            b"/v1/outcomes": Route(OUTCOMES, WRITE, self._outcomes),
            b"/metrics": Route(METRICS, READ, self._metrics),
        }
        self._known = dict(self._fixed)
        help_answers, help_seconds = "Answers by route and status", "From the first byte of a request to its answer"
        self._answers = [
            {
                status: meter.counter(
                    "millstream_http_answers_total", help_answers, {"route": r, "status": str(status)}
                )
                for status in answer.STATUSES
            }
            for r in LABELS
        ]
        self._seconds = [meter.histogram("millstream_http_seconds", help_seconds, {"route": r}) for r in LABELS]
        # Ids that are made here: unique between processes and of one length, so that answers keep one template.
        self._id_prefix = os.urandom(6).hex()
        self._ids = itertools.count(1)

    def begin(self, exchange: Exchange) -> None:
        """Route, check and start. Afterwards the exchange has its answer, or a future that will bring it."""
        try:
            route = self._known.get(exchange.url) or self._find(exchange.url)
            exchange.label = route.label
            if exchange.method not in route.methods:
                raise answer.BadMethod(
                    f"{ascii(exchange.url)[2:-1]} takes {route.allow}, got {exchange.method.decode()}", route.allow
                )
            route.run(exchange)
        except Exception as error:
            exchange.refuse(error)

    def count(self, exchange: Exchange) -> None:
        """Meter an answer that is on its way: its status, and the seconds since its request began."""
        self._answers[exchange.label][exchange.status].add()
        self._seconds[exchange.label].observe(self._monotonic() - exchange.started)

    def principal(self, exchange: Exchange) -> Principal:
        """Who asks: `Authorization: Bearer KEY`, or nobody. Raises Unauthenticated."""
        given = exchange.authorization
        if given is None:
            return self._door.principal(None, exchange.peer)
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise errors.Unauthenticated("Authorization: expected 'Bearer KEY'")
        return self._door.principal(key.strip().decode("latin-1"), exchange.peer)

    def new_id(self, exchange: Exchange) -> str:
        """The X-Request-Id of the client, or the next id of this process."""
        given = exchange.request_id
        if given is None:
            return f"{self._id_prefix}{next(self._ids):010x}"
        if not given.isascii() or not 0 < len(given) <= TEXT_CHARS_MAX:
            raise errors.BadInput(f"X-Request-Id: {len(given)} bytes; send 1 to {TEXT_CHARS_MAX} ASCII characters")
        return given.decode()

    def remember(self, url: bytes, route: Route) -> None:
        """Keep the route of a URL that a model has answered: names that nobody serves are never kept."""
        if b"?" in url:
            return
        if len(self._known) >= ROUTES_MAX:
            self._known = dict(self._fixed)
        self._known[url] = route

    def _find(self, url: bytes) -> Route:
        path, query, _ = url.partition(b"?")
        if query and path in self._known:
            return self._known[path]
        parts = [unquote(part.decode("latin-1")) for part in path.split(b"/")]
        match parts:
            case ["", "v2", "models", model, *rest] if model:
                version = ""
                if rest[:1] == ["versions"] and len(rest) >= 2 and rest[1]:
                    version, rest = rest[1], rest[2:]
                if rest == ["infer"]:
                    return Infer(self, self._door, model, version).route
                if rest == ["ready"]:
                    return Route(MODELS, READ, lambda exchange: self._model_ready(exchange, model, version))
                if not rest:
                    return Route(MODELS, READ, lambda exchange: self._model(exchange, model, version))
        raise errors.NotFound(f"no route {ascii(path[:200])[2:-1]}; {WHERE}")

    def _root(self, exchange: Exchange) -> None:
        _reply(
            exchange,
            {"name": "millstream", "version": millstream.__version__, "docs": "docs/http.md", "routes": ROUTES},
        )

    def _server(self, exchange: Exchange) -> None:
        self.principal(exchange)
        _reply(
            exchange,
            {"name": "millstream", "version": millstream.__version__, "extensions": ["binary_tensor_data"]},
        )

    def _live(self, exchange: Exchange) -> None:
        _reply(exchange, {"live": True})

    def _ready(self, exchange: Exchange) -> None:
        if not self._door.ready():
            raise errors.Busy("the service is not ready: it is starting, stopping, or its models do not answer")
        _reply(exchange, {"ready": True})

    def _models(self, exchange: Exchange) -> None:
        self.principal(exchange)
        _reply(exchange, {"models": [_metadata(description) for description in self._door.models()]})

    def _model(self, exchange: Exchange, model: str, version: str) -> None:
        self.principal(exchange)
        _reply(exchange, _metadata(self._door.describe(model, version)))

    def _model_ready(self, exchange: Exchange, model: str, version: str) -> None:
        self.principal(exchange)
        if not self._door.ready(model, version):
            self._door.describe(model, version)  # says NotFound where it is not served at all
            raise errors.Busy(f"model {model!r} is not ready: it is loading or being replaced")
        _reply(exchange, {"name": model, "ready": True})

    def _metrics(self, exchange: Exchange) -> None:
        self.principal(exchange)
        exchange.answer = answer.answer(self._door.metrics().encode(), answer.PROMETHEUS)

    def _recommend(self, exchange: Exchange) -> None:
        principal = self.principal(exchange)
        rank = recommend.read_rank(exchange.body, self.new_id(exchange))
        _await(exchange, self._door.call(rank, principal), _ranked)

    def _outcomes(self, exchange: Exchange) -> None:
        principal = self.principal(exchange)
        self._door.admit(principal, "*", "outcomes")
        outcomes = recommend.read_outcomes(exchange.body, self._limits.outcomes_max)
        _await(exchange, self._door.call(outcomes, principal), _accepted)


class Infer:
    """The infer route of one model (and version): it keeps the plan of the description it saw last."""

    def __init__(self, routes: Routes, door: Door, model: str, version: str) -> None:
        self._routes, self._door, self._model, self._version = routes, door, model, version
        self._plan: Plan | None = None
        self.route = Route(INFER, WRITE, self._run)

    def _run(self, exchange: Exchange) -> None:
        principal = self._routes.principal(exchange)
        self._door.admit(principal, self._model, "infer")  # before what a mistake in the body would tell of the model
        description = self._door.describe(self._model, self._version)
        plan = self._plan
        if plan is None or (plan.description is not description and plan.description != description):
            plan = self._plan = Plan(description)
            self._routes.remember(exchange.url, self.route)
        layout, inputs = plan.read(exchange.body, _header_length(exchange.inference_header))
        ident = layout.id or self._routes.new_id(exchange)
        request = Request(
            self._model, inputs, layout.rows, ident, self._version, layout.key, layout.outputs
        )  # positional: a keyword costs a tenth of a microsecond
        exchange.plan, exchange.layout = plan, layout
        exchange.ident = ident.encode() if ident.isalnum() else orjson.dumps(ident)[1:-1]
        _await(exchange, self._door.call(request, principal), _inferred)


def _await(exchange: Exchange, future: asyncio.Future[Any], encode: Callable[[Exchange, Any], bytes]) -> None:
    exchange.encode = encode
    if not future.done():
        exchange.future = future
        future.add_done_callback(exchange.settle)
    elif future.cancelled():
        raise errors.Busy("the service stopped before an answer was ready: ask again")
    else:
        exchange.answer = encode(exchange, future.result())


def _inferred(exchange: Exchange, output: Any) -> bytes:
    return exchange.plan.write(exchange.layout, exchange.ident, output)


def _ranked(exchange: Exchange, ranked: Any) -> bytes:
    return answer.answer(recommend.write_ranked(ranked))


def _accepted(exchange: Exchange, accepted: Any) -> bytes:
    return answer.answer(b'{"accepted":%d}' % accepted)


def _reply(exchange: Exchange, document: dict[str, object]) -> None:
    exchange.answer = answer.answer(orjson.dumps(document))


def _header_length(given: bytes | None) -> int | None:
    if given is None:
        return None
    if not given.isdigit() or len(given) > 12:
        raise errors.BadInput(
            f"Inference-Header-Content-Length: got {ascii(given[:40])[1:]}; send the length of the JSON in bytes"
        )
    return int(given)


def _metadata(description: Description) -> dict[str, object]:
    def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
        return [{"name": s.name, "datatype": s.datatype, "shape": s.shape} for s in specs]

    return {
        "name": description.model,
        "versions": description.versions,
        "platform": description.platform,
        "inputs": tensors(description.inputs),
        "outputs": tensors(description.outputs),
    }
