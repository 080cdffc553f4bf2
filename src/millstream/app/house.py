"""The Door: authorises (model, verb), then hands the request to its flow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from millstream.app.steering import Comparison, Steering, Traffic
from millstream.app.tenants import NOBODYS, Tenants
from millstream.engine import Engine
from millstream.errors import BadInput, Error, Forbidden, NotFound
from millstream.flows.predict import Predict
from millstream.front.door import Answer, Call, Recording, Transcribed
from millstream.guard import auth
from millstream.guard.auth import Keys
from millstream.meter import Meter
from millstream.models.policy import Policy
from millstream.models.traffic import Move
from millstream.spoken import Start
from millstream.types import Ask, Description, Merge, Principal, Rank, Request, Turn

if TYPE_CHECKING:  # serving models alone imports neither the log nor the compiler of feature rows
    from millstream.app.hearing import Hearer, Hearing
    from millstream.app.place import Peers
    from millstream.flows.collect import Collect
    from millstream.flows.facts import Facts, Row
    from millstream.flows.features import Features, Names, Numbers, Read
    from millstream.flows.recommend import Recommend
    from millstream.flows.recommend.lists import Lists
    from millstream.flows.recommend.upsert import Upserts

_NO_LISTS = (
    "this installation makes no lists: its millstream.toml has no [recommend.placements.NAME]; send candidates to have "
    "them put in order"
)
_NOBODY_HEARS = (
    "nobody is heard here: name the model that makes words of speech, recogniser under [speech] of millstream.toml, "
    "and start `millstream up -c FILE`"
)
_NO_SETS = "no feature sets are defined here: `millstream up -c FILE` has those of [feature_store] definitions"


class House:
    """The Door: authorises (model, verb), then hands the request to its flow. `recommend` and `collect` need a log."""

    def __init__(
        self,
        engine: Engine,
        predict: Predict,
        meter: Meter,
        keys: Keys | None,
        steering: Steering,
        recommend: Recommend | None = None,
        collect: Collect | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._engine, self._predict, self._recommend, self._collect = engine, predict, recommend, collect
        self._keys, self._steering, self._meter = keys, steering, meter
        self._features: Features | None = None
        self._facts: Facts | None = None
        self._lists: Mapping[str, Lists] = {}
        self._tenants = Tenants((), meter)
        self._upserts: Upserts | None = None
        self._hearing: Hearing | None = None
        self._verbs = peers.verbs if peers else {"load": engine.load, "unload": engine.unload}
        self.describe, self.config, self.statistics = engine.describe, engine.config, engine.statistics
        self.index = engine.index
        self.metrics = meter.render

    def call(self, request: Call, principal: Principal) -> Answer:
        """Authorise, then start the flow that the request belongs to. NotFound where this process has no such flow."""
        if isinstance(request, Request):
            self.admit(principal, request.model, "infer")
            self._spend(principal)
            if request.turn is not None:
                request.turn.owner = principal.name
            if self._tenants:
                request = replace(request, id=NOBODYS + request.id)
            return self._predict.call(request)
        if self._collect is None:
            raise NotFound("this process serves models alone; `millstream up -c FILE` also ranks and takes outcomes")
        if isinstance(request, Rank):
            if self._recommend is None:
                raise NotFound("this installation ranks nothing: its millstream.toml has no [features] table")
            self.admit(principal, request.model or self._recommend.model, "recommend")
            request.tenant = self._tenants.of(principal, request.tenant)
            self._spend(principal)
            self._tenants.asked(request.tenant)
            return self._recommend.call(request)
        if isinstance(request, Ask):
            tenant = self._tenants.of(principal, request.tenant)
            if (lists := self._lists.get(tenant)) is None:
                raise BadInput(_NO_LISTS)
            self.admit(principal, lists.model, "recommend")
            self._spend(principal)
            self._tenants.asked(tenant)
            return lists.call(request)
        self.admit(principal, "*", "outcomes")
        told = self._tenants.outcomes(principal, request)
        self._spend(principal)
        return self._collect.call(told)

    def furnish(self, features: Features, facts: Facts) -> None:
        """Feature sets are defined here: they are read and their sources are written."""
        self._features, self._facts = features, facts

    def furnish_lists(self, upserts: Upserts, lists: Mapping[str, Lists], tenants: Iterable[str] = ()) -> None:
        """Items and users are told of here, and lists are made where a placement is configured: by tenant, "" where
        there are none."""
        self._upserts, self._lists = upserts, lists
        self._tenants = Tenants(tenants, self._meter)
        self._predict.says_whose = not self._tenants

    def upsert(
        self, topic: Literal["users", "items"], rows: Sequence[Mapping[str, Any]], principal: Principal,
        tenant: str = "",
    ) -> asyncio.Future[int]:  # fmt: skip
        """Users or items; how many are durable now. Forbidden, NotFound; else as the flow says."""
        self.admit(principal, topic, "upsert")
        tenant = self._tenants.of(principal, tenant)
        return self._telling(principal).call(topic, rows, tenant)

    def merge(self, merges: Sequence[Merge], principal: Principal, tenant: str = "") -> asyncio.Future[int]:
        """Which visitors are which users; as `upsert`."""
        self.admit(principal, "users", "upsert")
        tenant = self._tenants.of(principal, tenant)
        return self._telling(principal).merge(merges, tenant)

    def _telling(self, principal: Principal) -> Upserts:
        if self._upserts is None:
            raise NotFound("this process serves models alone; `millstream up -c FILE` also takes items and users")
        self._spend(principal)
        return self._upserts

    def features(self, name: str, entities: Names, request: Numbers, principal: Principal) -> asyncio.Future[Read]:
        """The features of a set. Forbidden, NotFound; else as the flow says."""
        self.admit(principal, name, "features")
        if self._features is None:
            raise NotFound(_NO_SETS)
        self._spend(principal)
        return self._features.call(name, entities, request)

    def facts(self, source: str, rows: Sequence[Row], principal: Principal) -> asyncio.Future[int]:
        """Rows of a source; how many are durable now. Forbidden, NotFound; else as the flow says."""
        self.admit(principal, source, "facts")
        if self._facts is None:
            raise NotFound(_NO_SETS)
        self._spend(principal)
        return self._facts.call(source, rows)

    def furnish_speech(self, hearing: Hearing) -> None:
        """Speech is heard here."""
        self._hearing = hearing

    def listens(self, principal: Principal) -> None:
        """NotFound where nobody is heard here, Forbidden where not this principal."""
        self._heard_by(principal)

    async def speech(self, start: Start, principal: Principal) -> Hearer:
        """A live transcription; what it may raise the flow says."""
        hearing = self._heard_by(principal)
        if start.user and self._tenants:
            raise BadInput("user: an installation of tenants does not say whose speech it is; leave it out")
        self._spend(principal)
        several = self._keys is not None and self._keys.several(hearing.model, "speech")
        return await hearing.open(start, principal.name, several)

    def transcribe(self, recording: Recording, principal: Principal) -> asyncio.Future[Transcribed]:
        """A recording as text; what it may raise the flow says."""
        hearing = self._heard_by(principal)
        self._spend(principal)
        return asyncio.ensure_future(hearing.transcribe(recording))

    def _heard_by(self, principal: Principal) -> Hearing:
        if self._hearing is None:
            raise NotFound(_NOBODY_HEARS)
        self.admit(principal, self._hearing.model, "speech")
        return self._hearing

    def models(self) -> list[Description]:
        """Every model that answers now."""
        return [self._engine.describe(model) for model in self._engine.models()]

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether every model (or this one, in this version) answers. Where features are served there may be none."""
        if not model:
            return self._engine.ready(none_needed=self._features is not None)
        try:
            return bool(self._engine.describe(model, version))
        except Error:
            return False

    def control(self, verb: Literal["load", "unload"], model: str, principal: Principal) -> asyncio.Future[None]:
        """Load or unload a model, in all processes at this address. Forbidden without the right, and without a keys
        file from another machine."""
        auth.check(principal, model, "control")
        return asyncio.ensure_future(self._verbs[verb](model))

    def traffic(self, model: str, principal: Principal) -> asyncio.Future[Traffic]:
        """Who gets which version of a model. Forbidden as `control` is."""
        auth.check(principal, model, "control")
        return self._steering.traffic(model)

    def comparison(self, model: str, principal: Principal) -> asyncio.Future[Comparison]:
        """What a model's shadows say; samples of requests are in it. Forbidden as `control` is."""
        auth.check(principal, model, "control")
        return self._steering.comparison(model)

    def move(self, model: str, verb: str, move: Move, principal: Principal) -> asyncio.Future[Policy]:
        """Change who gets which version; recorded under the name of the key, where there are keys."""
        auth.check(principal, model, "control")
        who = principal.name if self._keys is not None else move.who or "control API"
        return self._steering.move(model, verb, replace(move, who=who))

    def session(self, model: str, token: str, principal: Principal) -> Turn:
        """Where the session of a token stands."""
        self.admit(principal, model, "infer")
        return self._engine.session(model, token)

    def describe_step(self, model: str, turn: Turn, principal: Principal) -> Description:
        """The version that an open session is on."""
        self.admit(principal, model, "infer")
        return self._engine.describe_step(model, replace(turn, owner=principal.name))

    def principal(self, key: str | None, peer: str) -> Principal:
        """Who presents `key`; without a keys file, anybody: from this machine with every right."""
        here = peer in ("127.0.0.1", "::1")
        if self._keys is None:
            return auth.ANYBODY_HERE if here else auth.ANYBODY
        return self._keys.principal(key, here)

    def _spend(self, principal: Principal) -> None:
        """Overloaded where the principal's key has sent as many requests as its rate allows."""
        if self._keys is not None:
            self._keys.spend(principal)

    def admit(self, principal: Principal, model: str, verb: str) -> None:
        """Forbidden where a keys file does not open `verb` of `model` to the principal; and to everybody what a
        recogniser says itself, where speech is heard: it has not passed the gate (flows/speech/words)."""
        if self._keys is not None:
            auth.check(principal, model, verb)
        if verb == "infer" and self._hearing is not None and self._hearing.hides(model):
            raise Forbidden(
                f"{model} is heard through /v1/speech and /v1/audio/transcriptions here, where its words lose what is "
                "personal; to ask it for raw ones, serve it where millstream.toml has no recogniser under [speech]"
            )
