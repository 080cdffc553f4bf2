"""Rank given candidates for a user: feature rows, one batched model call, one served event, the answer.

Request ids are the client's and idempotent: an id that was answered lately gets the same answer again and is logged
once, also after a restart, because the memory of answers is rebuilt from the log's own tail. An id that comes back with
another user, model or candidates is refused: it must never give one person's ranking to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.clock import Clock
from millstream.errors import BadInput, Misconfigured, NotFound, TooLarge
from millstream.features import Entities
from millstream.flows.formula import Formula
from millstream.flows.predict import Submit
from millstream.flows.recommend.ask import AskLimits, check_names, check_time
from millstream.flows.recommend.explore import explored
from millstream.flows.recommend.once import Once, digest
from millstream.flows.recommend.placement import Placement, Tenant
from millstream.flows.recommend.upsert import UpsertLimits
from millstream.flows.served import ServedLog
from millstream.guard.pii import pseudonym
from millstream.guard.tenants import inside, outside, person, proper
from millstream.stream.event import decode
from millstream.stream.log import Reader
from millstream.types import Array, Candidate, Leeway, Output, Rank, Ranked, Request, Served

More = Callable[[str, Sequence[str]], dict[str, Array]]
"""What any loaded version of a model takes beside rows, of a user with this history: that, if one attends to it.
NotFound: it is not served."""
SPARE: Final = ("history",)  # what a version may take beside rows
Matrix = Callable[[str, Sequence[str]], NDArray[Any] | None]
"""A user's and the candidates' features, float [candidates, columns], or None; at once."""


class RecommendLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ranking request is answered with, and its bounds."""

    model: Annotated[str, msgspec.Meta(description="the model that ranks when a request names none")] = "ranker"
    beside: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            max_length=4,
            description="models whose outputs a placement's score may read beside the ranker's, as online.probability; "
            "one that learns learns from what the ranker put in order",
        ),
    ] = ()
    candidates_max: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="candidates a request may bring")] = 1000
    explore: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=0.5, description="share of the requests in which chance puts a candidate first"),
    ] = 0.0
    answers_kept: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="answers remembered so that a retried id is not logged twice")
    ] = 20_000
    name_bytes_max: Annotated[
        int, msgspec.Meta(ge=16, le=65536, description="longest id, user or candidate, bytes of UTF-8")
    ] = 512
    ahead_s_max: Annotated[
        float, msgspec.Meta(ge=0.0, description="how far event_time may lie ahead of this machine's clock, seconds")
    ] = 86400.0
    placements: Annotated[dict[str, Placement], msgspec.Meta(description="where lists stand; see recommend.md")] = {}
    tenants: Annotated[
        dict[str, Tenant], msgspec.Meta(description="brands, shops, customers that are served apart; see recommend.md")
    ] = {}
    asks: AskLimits = AskLimits()
    upserts: UpsertLimits = UpsertLimits()

    def __post_init__(self) -> None:
        for name in self.beside:
            if not name.isidentifier() or name == self.model or self.beside.count(name) > 1:
                raise Misconfigured(
                    f"recommend.beside: {name!r} must be the name of another model than {self.model!r}, once, of "
                    "letters, digits and _: a formula reads it as in online.probability"
                )
        for tenant in self.tenants:
            if not proper(tenant):
                raise Misconfigured(
                    f"recommend.tenants.{tenant}: a tenant's name is of small letters, digits, - and _, begins with a "
                    "letter, has 63 characters at most, and does not look like somebody's number"
                )
        named = [(f"recommend.placements.{place}", one) for place, one in self.placements.items()]
        for tenant, of in self.tenants.items():
            named += [(f"recommend.tenants.{tenant}.placements.{place}", one) for place, one in of.placements.items()]
        for where, placement in named:
            if strange := sorted(Formula(placement.score).beside.keys() - set(self.beside)):
                raise Misconfigured(
                    f"{where}.score = {placement.score!r}: there is no model {strange[0]!r} in "
                    f"recommend.beside; there are: {', '.join(self.beside) or 'none'}"
                )

    @property
    def places(self) -> dict[str, dict[str, Placement]]:
        """Tenant -> its placements by name, "" being the one where there are no tenants; whoever has none is left out.
        Their rules name items as the log does."""
        shared = self.placements
        if not self.tenants:
            return {"": shared} if shared else {}
        found = {tenant: of.placements or shared for tenant, of in self.tenants.items()}
        return {
            tenant: {name: one.inside(tenant) for name, one in several.items()}
            for tenant, several in found.items()
            if several
        }


class Recommend:
    """`call(rank)` is a future of Ranked: candidates best first, ties in the order they were given. `matrix`: of the
    feature set that rows take, if they take one."""

    def __init__(
        self, submit: Submit, entities: Entities, clock: Clock, served: ServedLog, limits: RecommendLimits,
        matrix: Matrix = lambda user, items: None, more: More = lambda model, history: {},
        history: Callable[[str], list[str]] = lambda user: [],
    ) -> None:  # fmt: skip
        self._matrix, self._more, self._history = matrix, more, history
        self._submit, self._entities, self._clock = submit, entities, clock
        self._served, self._limits = served, limits
        self._once = Once[Ranked](limits.answers_kept)

    @property
    def model(self) -> str:
        """The model that ranks when a request names none."""
        return self._limits.model

    def call(self, rank: Rank) -> asyncio.Future[Ranked]:
        """The ranking; an id that is known or under way gets the same one, without a second event.

        Raises BadInput, TooLarge, and Conflict for an id of another request; the future fails as the engine does.
        """
        self._check(rank)
        tenant = rank.tenant
        rank.user = person(tenant, pseudonym(rank.user))  # under which the log, and so every feature, knows them
        if tenant:
            rank.id, rank.candidates = inside(tenant, rank.id), tuple(inside(tenant, item) for item in rank.candidates)
        asked = digest(rank.model or self._limits.model, rank.user, rank.candidates)
        answer = self._once.call(rank.id, asked, lambda: self._answer(rank, asked))
        return asyncio.ensure_future(_told(tenant, answer)) if tenant else answer

    async def _answer(self, rank: Rank, asked: bytes) -> Ranked:
        tokens = self._entities.rows(rank.user, rank.candidates, self._matrix(rank.user, rank.candidates))
        model, history = rank.model or self._limits.model, self._history(rank.user)
        request = asking(model, tokens, self._more(model, history), ("probability",), id=rank.id, key=rank.user)
        output = await self._submit(request)
        scores = _scores(output)
        chance = explored(rank.id, scores, self._limits.explore) if self._limits.explore else None
        event = Served(
            request=rank.id,
            model=output.model,
            version=output.version,
            policy=output.policy,
            arm=output.arm,
            user=rank.user,
            candidates=list(rank.candidates),
            event_time=rank.event_time or self._clock.now(),
            definition=self._entities.definition.hash,
            tokens=tokens.tobytes(),
            scores=scores.tobytes(),
            propensities=chance.propensities.tobytes() if chance else b"",
            explored=chance.first if chance else -1,
            history=history,
        )
        await self._served.append(event)
        ranked = _ranked(rank.id, output.model, output.version, rank.candidates, scores, event.explored)
        self._once.remember(rank.id, asked, ranked, rank.user)
        return ranked

    def forget(self, mine: Callable[[str], bool]) -> int:
        """Forget the answers to people by their names; how many. A retry of such a request is a new one."""
        return self._once.forget(mine)

    def recall(self, reader: Reader, partition: int) -> None:
        """Rebuild the memory of answers from the tail of this process's own `served` partition."""
        at = reader.end(partition) - self._limits.answers_kept
        for event in (decode(record.value) for record in reader.records(partition, at)):
            if isinstance(event, Served) and event.scores and not event.placement:
                scores = np.frombuffer(event.scores, np.float32)
                candidates = tuple(event.candidates)
                asked = digest(event.model, event.user, candidates)
                ranked = _ranked(event.request, event.model, event.version, candidates, scores, event.explored)
                self._once.remember(event.request, asked, ranked, event.user)

    def _check(self, rank: Rank) -> None:
        limits = self._limits
        if not rank.id or not rank.user:
            raise BadInput("id and user must not be empty: id names this request (yours, used again on a retry)")
        if not rank.candidates:
            raise BadInput("candidates is empty: send the items to put in order")
        if len(rank.candidates) > limits.candidates_max:
            raise TooLarge(f"{len(rank.candidates)} candidates, at most {limits.candidates_max} are ranked at once")
        if len(set(rank.candidates)) != len(rank.candidates):
            raise BadInput("candidates holds an item twice: outcomes could not be told apart")
        check_names(limits.name_bytes_max, (rank.id, rank.user, *rank.candidates))
        check_time(rank.event_time, self._clock.now(), limits.ahead_s_max)


def asking(
    model: str, tokens: NDArray[np.uint32], more: dict[str, Array], reads: Sequence[str], **about: Any
) -> Request:
    """A request to score rows, of whatever version of a model gives the outputs that are read: each takes of `more`
    what it attends to."""
    inputs = {"tokens": tokens, **more}
    return Request(model=model, inputs=inputs, rows=len(tokens), leeway=Leeway(SPARE, tuple(sorted(reads))), **about)


async def _told(tenant: str, answer: asyncio.Future[Ranked]) -> Ranked:
    """An answer as its tenant reads it."""
    ranked = await answer
    items = [Candidate(outside(tenant, one.item), one.score) for one in ranked.items]
    return msgspec.structs.replace(ranked, id=outside(tenant, ranked.id), items=items)


def _scores(output: Output) -> NDArray[np.float32]:
    scores = output.outputs.get("probability")
    if scores is None:
        raise NotFound(
            f"model {output.model} {output.version} has outputs {sorted(output.outputs)}; a ranker has 'probability'"
        )
    return np.ascontiguousarray(scores.reshape(-1), np.float32)


def _ranked(
    request: str, model: str, version: str, candidates: tuple[str, ...], scores: NDArray[np.float32], first: int
) -> Ranked:
    """Best first, after the one that chance puts `first` (its place in `candidates`; -1: none)."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    if first >= 0:
        order.insert(0, order.pop(order.index(first)))
    values = scores.tolist()
    return Ranked(request, model, version, [Candidate(candidates[i], values[i]) for i in order])
