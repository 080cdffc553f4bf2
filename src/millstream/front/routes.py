"""Which call a URL means: the table of routes.

Rules of the room:
- A route is found by the raw bytes of the URL; one that a model answered is remembered, with its `Plan`.
- A name that nobody serves is never remembered: strangers cannot fill the table.
"""

from __future__ import annotations

import itertools
import os
from functools import cache
from typing import Any
from urllib.parse import unquote

import orjson

import millstream
from millstream import errors
from millstream.clock import Clock
from millstream.front import answer, openapi, recommend
from millstream.front.door import Door
from millstream.front.exchange import LABELS, METRICS, OTHER, OUTCOMES, READ, RECOMMEND, WRITE, Exchange, Route, no_page
from millstream.front.features import Features
from millstream.front.infer import Infer
from millstream.front.limits import HttpLimits
from millstream.front.lists import Lists, write_listing
from millstream.front.parameters import TEXT_CHARS_MAX
from millstream.front.record import Observer, Record
from millstream.front.speech import Speech
from millstream.front.traffic import Traffic
from millstream.front.v2 import V2
from millstream.meter import Meter
from millstream.models.traffic import MOVES
from millstream.types import Listing, Principal

ROUTES_MAX = 1024
WHERE = "GET / lists the routes"
ROUTES = {
    "service": "GET /v2, /v2/health/live, /v2/health/ready",
    "models": "GET /v2/models, /v2/models/MODEL[/versions/VERSION][/ready]",
    "configuration": "GET /v2/models/MODEL[/versions/VERSION]/config",
    "statistics": "GET /v2/models/stats, /v2/models/MODEL[/versions/VERSION]/stats",
    "infer": "POST /v2/models/MODEL[/versions/VERSION]/infer",
    "sequences": "GET /v2/models/MODEL/sequences/TOKEN",
    "repository": "POST /v2/repository/index, /v2/repository/models/MODEL/load, /v2/repository/models/MODEL/unload",
    "recommend": "POST /v1/recommend, /v1/similar",
    "catalogue": "POST /v1/items, /v1/users, /v1/users/merge",
    "outcomes": "POST /v1/outcomes",
    "features": "POST /v1/features/get, /v1/features/write",
    "speech": "GET /v1/speech",
    "transcription": "POST /v1/audio/transcriptions",
    "traffic": "GET /v1/traffic/MODEL, /v1/traffic/MODEL/comparison",
    "moves": "POST " + ", ".join(f"/v1/traffic/MODEL/{verb}" for verb in MOVES),
    "metrics": "GET /metrics",
    "openapi": "GET /openapi.json",
}


class Routes:
    """The table. `begin` starts an exchange; `count` meters it once its answer is on its way."""

    def __init__(
        self, door: Door, meter: Meter, clock: Clock, limits: HttpLimits, observer: Observer | None = None
    ) -> None:
        self._door, self._limits, self.monotonic, self.observer = door, limits, clock.monotonic, observer
        features, lists = Features(door, self.principal), Lists(door, self.principal, self.new_id, clock.monotonic)
        speech = Speech(door, self.principal, limits)
        self._fixed = {
            b"/": Route(OTHER, READ, self._root),
            b"/v1/recommend": Route(RECOMMEND, WRITE, self._recommend),
            b"/v1/similar": lists.similar,
            b"/v1/items": lists.items,
            b"/v1/users": lists.users,
            b"/v1/users/merge": lists.merge,
            b"/v1/outcomes": Route(OUTCOMES, WRITE, self._outcomes),
            b"/v1/features/get": features.get,
            b"/v1/features/write": features.write,
            b"/v1/speech": speech.live,
            b"/v1/audio/transcriptions": speech.file,
            b"/metrics": Route(METRICS, READ, self._metrics),
            b"/openapi.json": Route(OTHER, READ, self._openapi),
        }
        self._v2, self._traffic = V2(door, self.principal), Traffic(door, self.principal)
        self._known = dict(self._fixed)
        help_answers, help_seconds = "Answers by route and status", "From the first byte of a request to its answer"
        self._counted = [
            (
                {
                    status: meter.counter(
                        "millstream_http_answers_total", help_answers, {"route": label, "status": str(status)}
                    )
                    for status in answer.STATUSES
                },
                meter.histogram("millstream_http_seconds", help_seconds, {"route": label}),
            )
            for label in LABELS
        ]
        # Ids that are made here: unique between processes and of one length, so that answers keep one template.
        self._id_prefix = os.urandom(6).hex()
        self._ids = itertools.count(1)

    def begin(self, exchange: Exchange) -> None:
        """Route, check and start. Afterwards the exchange has its answer, or a future that will bring it."""
        if self.observer is not None:
            exchange.record = Record(exchange.started)
        try:
            route = self._known.get(exchange.url) or self._find(exchange.url)
            exchange.label = route.label
            if exchange.method not in route.methods:
                raise answer.BadMethod(
                    f"{ascii(exchange.url)[2:-1]} takes {route.allow}, got {exchange.method.decode()}", route.allow
                )
            route.run(exchange)
            if exchange.accepts is not None and exchange.answer is not None:
                exchange.pack()
        except Exception as error:
            exchange.refuse(error)

    def count(self, exchange: Exchange) -> None:
        """Meter an answer that is on its way: its status, and the seconds since its request began."""
        answers, seconds = self._counted[exchange.label]
        answers[exchange.status].add()
        seconds.observe(self.monotonic() - exchange.started)

    def principal(self, exchange: Exchange) -> Principal:
        """Who asks: `Authorization: Bearer KEY`, or nobody. Raises Unauthenticated."""
        given = exchange.authorization
        if given is None:
            return self._door.principal(None, exchange.peer)
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise errors.Unauthenticated("Authorization: expected 'Bearer KEY'")
        principal = self._door.principal(key.strip().decode("latin-1"), exchange.peer)
        if exchange.record is not None:
            exchange.record.key = principal.name
        return principal

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
            case ["", "v2", "models", model, "infer"] if model:
                return Infer(self, self._door, model, "").route
            case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
                return Infer(self, self._door, model, version).route
            case ["", "v1", "traffic", *rest]:
                if (found := self._traffic.find(rest)) is not None:
                    return found
            case ["", "v2", *rest]:
                if (found := self._v2.find(rest)) is not None:
                    return found
        raise errors.NotFound(f"no route {ascii(path[:200])[2:-1]}; {WHERE}")

    def _root(self, exchange: Exchange) -> None:
        exchange.reply(
            {"name": "millstream", "version": millstream.__version__, "docs": "docs/http.md", "routes": ROUTES}
        )

    def _openapi(self, exchange: Exchange) -> None:
        exchange.answer = _openapi()

    def _metrics(self, exchange: Exchange) -> None:
        if tenants := self.principal(exchange).tenants:
            raise errors.Forbidden(f"metrics are of the whole installation, and this key of {', '.join(tenants)} alone")
        exchange.answer = answer.answer(self._door.metrics().encode(), answer.PROMETHEUS)

    def _recommend(self, exchange: Exchange) -> None:
        principal = self.principal(exchange)
        rank = recommend.read_rank(exchange.body, self.new_id(exchange))
        if exchange.record is not None:
            exchange.record.wants(rank, self.monotonic())
        exchange.wait(self._door.call(rank, principal), _ranked)

    def _outcomes(self, exchange: Exchange) -> None:
        no_page(exchange)
        principal = self.principal(exchange)
        self._door.admit(principal, "*", "outcomes")
        outcomes = recommend.read_outcomes(exchange.body, self._limits.outcomes_max)
        exchange.wait(self._door.call(outcomes, principal), _accepted)


@cache
def _openapi() -> bytes:
    return answer.answer(orjson.dumps(openapi.document()))


def _ranked(exchange: Exchange, ranked: Any) -> bytes:
    if exchange.record is not None:
        exchange.record.ranked(ranked)
    if isinstance(ranked, Listing):
        return answer.answer(write_listing(ranked))
    return answer.answer(recommend.write_ranked(ranked))


def _accepted(exchange: Exchange, accepted: Any) -> bytes:
    return answer.answer(b'{"accepted":%d}' % accepted)
