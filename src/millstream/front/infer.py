"""The infer route: the hot path of this border."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from millstream import errors
from millstream.front import answer, parameters
from millstream.front.codec import Plan
from millstream.front.door import Door
from millstream.front.exchange import INFER, WRITE, Exchange, Route
from millstream.front.explain import HEADER, explain
from millstream.types import Description, Principal, Request, Turn

if TYPE_CHECKING:
    from millstream.front.routes import Routes


STEP_BYTES_MAX = 1 << 16


class Infer:
    """The infer route of one model (and version): it keeps the plan of the description it saw last."""

    def __init__(self, routes: Routes, door: Door, model: str, version: str) -> None:
        self._routes, self._door, self._model, self._version = routes, door, model, version
        self._plan: Plan | None = None
        self.route = Route(INFER, WRITE, self._run)

    def _run(self, exchange: Exchange) -> None:
        routes = self._routes
        # Positional arguments and few calls: this is run for every request.
        if exchange.authorization is None:
            principal = self._door.principal(None, exchange.peer)
        else:
            principal = routes.principal(exchange)
        if exchange.record is not None:
            exchange.record.model = self._model
        self._door.admit(principal, self._model, "infer")  # before what a mistake in the body would tell of the model
        head = None if exchange.inference_header is None else _header_length(exchange.inference_header)
        try:
            description = self._door.describe(self._model, self._version)
            plan = self._plan
            if plan is None or (plan.description is not description and plan.description != description):
                plan = self._plan = Plan(description)
                routes.remember(exchange.url, self.route)
            layout, inputs = plan.read(exchange.body, head)
            if layout.turn is not None and not layout.turn.start:
                own = self._of_session(layout.turn, principal)
                if own is not None and not own.alike(plan.description):
                    plan = Plan(own)
                    layout, inputs = plan.read(exchange.body, head)
        except errors.Error:
            # A step of a session that began on a version of other inputs, or of a model that was unloaded since.
            turn = _turn(exchange.body, head)
            own = None if turn is None else self._of_session(turn, principal)
            if own is None:
                raise
            plan = Plan(own)
            layout, inputs = plan.read(exchange.body, head)
        ident = layout.id or routes.new_id(exchange)
        if layout.plain:
            request = Request(self._model, inputs, layout.rows, ident, self._version, "", layout.outputs)
        else:
            request = Request(
                self._model,
                inputs,
                layout.rows,
                ident,
                self._version,
                layout.key,
                layout.outputs,
                layout.priority,
                layout.timeout_s,
                layout.turn,
            )
        exchange.plan, exchange.layout = plan, layout
        exchange.ident = ident.encode() if ident.isalnum() else orjson.dumps(ident)[1:-1]
        wants = exchange.explain or layout.explain
        if exchange.record is not None:
            exchange.record.asks(self._model, layout.rows, ident, routes.monotonic())
        exchange.wait(self._door.call(request, principal), _explained if wants else _inferred)

    def _of_session(self, turn: Turn, principal: Principal) -> Description | None:
        """The version that an open session is on; None where none is open."""
        try:
            return self._door.describe_step(self._model, turn, principal)
        except errors.Error:
            return None


def _turn(body: bytes | bytearray, head: int | None) -> Turn | None:
    """Which step of a session a body that could not be read would be; None: none, or nobody can tell."""
    if len(body[:head]) > STEP_BYTES_MAX:  # it was read once already
        return None
    try:
        turn = parameters.turn(orjson.loads(body[:head])["parameters"])
    except (errors.Error, ValueError, LookupError, TypeError, AttributeError):
        return None
    return turn if turn and not turn.start else None


def _inferred(exchange: Exchange, output: Any) -> bytes:
    if exchange.record is not None:
        exchange.record.answered(output)
    return exchange.plan.write(exchange.layout, exchange.ident, output)


def _explained(exchange: Exchange, output: Any) -> bytes:
    return answer.with_header(_inferred(exchange, output), f"{HEADER}: {explain(output)}".encode())


@lru_cache(256)
def _header_length(given: bytes) -> int:
    if not given.isdigit() or len(given) > 12:
        raise errors.BadInput(
            f"Inference-Header-Content-Length: got {ascii(given[:40])[1:]}; send the length of the JSON in bytes"
        )
    return int(given)
