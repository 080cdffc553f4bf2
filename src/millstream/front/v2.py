"""The V2 protocol beside infer: what a server and its models say of themselves, and what may be done to them.

Rules of the room:
- Paths and documents are those that Triton's clients send and read, so that they work unchanged.
- What does not exist here is said with a sentence (501), and only then: a client's clean-up calls do no harm.
- Who may not describe a model learns nothing of it: asked for it is refused, and lists leave it out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import orjson

import millstream
from millstream import errors
from millstream.front import model_config, parameters
from millstream.front.door import Door, may_describe
from millstream.front.exchange import HEALTH, MODELS, OTHER, READ, REPOSITORY, WRITE, Exchange, Route, no_page
from millstream.front.tensor import shown
from millstream.types import Description, Listed, Principal, TensorSpec

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
)
_NO_MEMORY = "shared memory is not shared here: send tensors in the body, as bytes after the JSON"
_NO_TRACE = "traces are not set here: send `Millstream-Explain: 1` with a request to see where its time went"
_NO_LOGGING = "the log is not set here: its level is that of the process"
_MEMORIES = ("systemsharedmemory", "cudasharedmemory")


class V2:
    """Finds the route of a path below /v2. `principal` says who an exchange is from, or raises Unauthenticated."""

    def __init__(self, door: Door, principal: Callable[[Exchange], Principal]) -> None:
        self._door, self._principal = door, principal

    def find(self, parts: list[str]) -> Route | None:
        """The route of a path, by its unquoted parts after /v2; None where there is none."""
        match parts:
            case [] | [""]:
                return self._read(OTHER, self._server)
            case ["health", "live"]:
                return Route(HEALTH, READ, lambda exchange: exchange.reply({"live": True}))
            case ["health", "ready"]:
                return Route(HEALTH, READ, self._ready)
            case ["models"]:
                return Route(MODELS, READ, self._models)
            case ["models", "stats"]:
                return Route(MODELS, READ, self._statistics)
            case ["models", model, "sequences", token] if model and token:
                return Route(MODELS, READ, lambda exchange: self._sequence(exchange, model, token))
            case ["models", model, *rest] if model:
                return self._of_model(model, rest)
            case ["repository", "index"]:
                return Route(REPOSITORY, WRITE, self._index)
            case ["repository", "models", model, ("load" | "unload") as verb] if model:
                return Route(REPOSITORY, WRITE, lambda exchange: self._control(exchange, model, verb))
        return self._elsewhere(parts)

    def _of_model(self, model: str, rest: list[str]) -> Route | None:
        if rest == ["trace", "setting"]:
            return self._missing(_NO_TRACE)
        version = ""
        if len(rest) >= 2 and rest[0] == "versions" and rest[1]:
            version, rest = rest[1], rest[2:]
        door = self._door
        documents: dict[tuple[str, ...], Callable[[], object]] = {
            (): lambda: _metadata(door.describe(model, version)),
            ("ready",): lambda: self._model_ready(model, version),
            ("config",): lambda: model_config.config(door.config(model, version)),
            ("stats",): lambda: model_config.statistics(door.statistics(model, version)),
        }
        make = documents.get(tuple(rest))
        return make and self._read(MODELS, make, model)

    def _elsewhere(self, parts: list[str]) -> Route | None:
        """What other servers have: shared memory, of which there is never any, and settings that are none here."""
        match parts:
            case [memory, "status"] | [memory, "region", _, "status"] if memory in _MEMORIES:
                return self._read(OTHER, list)
            case [memory, "unregister"] | [memory, "region", _, "unregister"] if memory in _MEMORIES:
                return Route(OTHER, WRITE, lambda exchange: self._answer(exchange, dict))
            case [memory, "region", _, "register"] if memory in _MEMORIES:
                return self._missing(_NO_MEMORY, WRITE)
            case ["trace", "setting"]:
                return self._missing(_NO_TRACE)
            case ["logging"]:
                return self._missing(_NO_LOGGING)
        return None

    def _missing(self, sentence: str, methods: tuple[bytes, ...] = READ + WRITE) -> Route:
        """A route that tells anyone who is known what is not here."""

        def run(exchange: Exchange) -> None:
            self._principal(exchange)
            raise errors.Missing(sentence)

        return Route(OTHER, methods, run)

    def _read(self, label: int, make: Callable[[], object], model: str = "") -> Route:
        """A route that answers anyone who is known, and may describe the model if it is of one, with a document."""
        return Route(label, READ, lambda exchange: self._answer(exchange, make, model))

    def _answer(self, exchange: Exchange, make: Callable[[], object], model: str = "") -> None:
        principal = self._principal(exchange)
        if model:
            self._door.admit(principal, model, "describe")
        exchange.reply(make())

    def _server(self) -> object:
        return {"name": "millstream", "version": millstream.__version__, "extensions": EXTENSIONS}

    def _ready(self, exchange: Exchange) -> None:
        if not self._door.ready():
            raise errors.Busy("the service is not ready: it is starting, stopping, or its models do not answer")
        exchange.reply({"ready": True})

    def _models(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        known = [one for one in self._door.models() if may_describe(self._door, principal, one.model)]
        exchange.reply({"models": [_metadata(description) for description in known]})

    def _statistics(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        known = [one for one in self._door.statistics() if may_describe(self._door, principal, one.model)]
        exchange.reply(model_config.statistics(known))

    def _model_ready(self, model: str, version: str) -> object:
        if not self._door.ready(model, version):
            self._door.describe(model, version)  # says NotFound where it is not served at all
            raise errors.Busy(f"model {model!r} is not ready: it is loading or being replaced")
        return {"name": model, "ready": True}

    def _sequence(self, exchange: Exchange, model: str, token: str) -> None:
        session = self._door.session(model, token, self._principal(exchange))
        exchange.reply({"model_name": model} | parameters.standing(session))

    def _index(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        ready = parameters.flag(_document(exchange.body), "ready", "ready")
        known = [one for one in self._door.index() if may_describe(self._door, principal, one.model)]
        exchange.reply([_listed(one) for one in known if not ready or one.state == "READY"])

    def _control(self, exchange: Exchange, model: str, verb: Literal["load", "unload"]) -> None:
        no_page(exchange)
        principal = self._principal(exchange)
        asked = parameters.of(_document(exchange.body), verb)
        parameters.flag(asked, "unload_dependents", "parameters.unload_dependents")  # no model here has any
        if more := sorted(asked.keys() - {"unload_dependents"}):
            raise errors.BadInput(
                f"parameters: got {shown(more)}; a model is loaded as the repository has it: put a new version there"
            )
        done = asyncio.shield(self._door.control(verb, model, principal))  # also if the client does not wait for it
        exchange.wait(done, _LOADED if verb == "load" else _UNLOADED)


def _done(ready: bool) -> Callable[[Exchange, Any], bytes]:
    def encode(exchange: Exchange, _: Any) -> bytes:
        exchange.reply({"ready": ready})
        assert exchange.answer is not None
        return exchange.answer

    return encode


_LOADED, _UNLOADED = _done(True), _done(False)


def _document(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body that may be left out. Raises BadInput."""
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise errors.BadInput(f"the body is not JSON: {error}; send an object, or nothing") from None
    if not isinstance(document, dict):
        raise errors.BadInput(f"the body: got {shown(document)}, expected a JSON object, or nothing")
    return document


def _listed(one: Listed) -> dict[str, str]:
    return {"name": one.model, "version": one.version, "state": one.state, "reason": one.reason}


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
