"""What a border asks of the house behind it.

Rules of the room:
- The Door authorises and answers; the border only authenticates, reads and writes. The same Door serves every border.
- An error of `millstream.errors` carries its own status; anything else that comes out of a Door is a bug of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from millstream import errors
from millstream.models.policy import Policy
from millstream.models.traffic import Move
from millstream.spoken import Ack, Edit, Finish, Start, Told
from millstream.types import (
    Ask,
    Config,
    Description,
    Listed,
    Listing,
    Merge,
    Outcome,
    Output,
    Principal,
    Rank,
    Ranked,
    Request,
    Statistics,
    Turn,
)

Call = Request | Rank | Ask | list[Outcome]
Answer = asyncio.Future[Output] | asyncio.Future[Ranked] | asyncio.Future[Listing] | asyncio.Future[int]


class SpeechSession(Protocol):
    """One live transcription as a border holds it, from `Door.speech` to `close`. `hear` and `say` are called one after
    the other, beside `messages`."""

    async def hear(self, audio: bytes) -> None:
        """Take audio in, in the form that the session was begun with. Returns when there is room for more: who sends
        faster than it is heard waits. BadInput, TooLarge: it cannot be heard; the session is over for this client."""

    async def say(self, said: Ack | Edit | Finish) -> None:
        """What else a client says. BadInput, NotFound, Conflict: of an edit, and the session goes on."""

    def messages(self) -> AsyncIterator[Told]:
        """What to tell, `ready` first, and last `end`, `move` or an `error` that is fatal. Asked for once. Who does not
        go on reading loses partials, never what is final."""

    async def close(self) -> None:
        """Nobody listens any more: what was said stays for who comes with the token. Harmless when repeated."""


class Recording(msgspec.Struct, frozen=True):
    """A file to transcribe: its `name`, what is in it, and the other `fields` of the form, by name."""

    name: str
    data: bytes
    fields: Mapping[str, Sequence[str]]


class Transcribed(msgspec.Struct, frozen=True):
    """The answer as it is sent, and its media type."""

    content: bytes
    kind: str


class Door(Protocol):
    """The calls a border makes. None of them blocks; all run on the event loop of the border."""

    def call(self, request: Call, principal: Principal) -> Answer:
        """Start one call: Request -> Output, Rank -> Ranked, Ask -> Listing, outcomes -> how many are durable now.

        May raise at once instead. A caller that goes away cancels the future.
        """

    def admit(self, principal: Principal, model: str, verb: str) -> None:
        """Raise errors.Forbidden where the principal may not do this: for a border to ask before it reads a body."""

    def features(
        self,
        name: str,
        entities: Mapping[str, Sequence[str]],
        request: Mapping[str, Sequence[float | None]],
        principal: Principal,
    ) -> asyncio.Future[Any]:
        """The features of a set's entities, as a struct (flows/features.py). Authorised as verb "features" of the set;
        NotFound, BadInput, TooLarge; Busy while its rows are not there."""

    def facts(
        self, source: str, rows: Sequence[Mapping[str, str | float | None]], principal: Principal
    ) -> asyncio.Future[int]:
        """Write rows into a source of features; how many are durable now. Authorised as verb "facts" of the source;
        NotFound, BadInput, TooLarge."""

    def upsert(
        self,
        topic: Literal["users", "items"],
        rows: Sequence[Mapping[str, Any]],
        principal: Principal,
        tenant: str = "",
    ) -> asyncio.Future[int]:
        """Tell of users or items, each an `id` and its attributes; how many are durable now. `tenant`: whose they are,
        where there are any. Authorised as verb "upsert" of the topic; NotFound, BadInput, TooLarge."""

    def merge(self, merges: Sequence[Merge], principal: Principal, tenant: str = "") -> asyncio.Future[int]:
        """Tell which visitors are which users. Authorised as verb "upsert" of "users"; NotFound, BadInput, TooLarge."""

    def describe(self, model: str, version: str = "") -> Description:
        """A served model, or errors.NotFound. The same object until it changes: borders look at its identity first."""

    def models(self) -> list[Description]:
        """Every served model."""

    def describe_step(self, model: str, turn: Turn, principal: Principal) -> Description:
        """The version that an open session is on, which may take other inputs than the live one; errors.NotFound."""

    def config(self, model: str, version: str = "") -> Config:
        """How a served version is batched, or errors.NotFound."""

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """What every served version (of one model, or one version of it) has done, or errors.NotFound."""

    def index(self) -> list[Listed]:
        """Every version of the repository and whether it answers, by model and version."""

    def control(self, verb: Literal["load", "unload"], model: str, principal: Principal) -> asyncio.Future[None]:
        """Serve a model again from what the repository holds now, or stop serving it here; done when that is so.

        Authorised as verb "control". NotFound: no such model; Misconfigured: why it cannot be loaded.
        """

    def traffic(self, model: str, principal: Principal) -> asyncio.Future[Any]:
        """Who gets which version of a model, as a struct. Authorised as verb "control"; NotFound."""

    def comparison(self, model: str, principal: Principal) -> asyncio.Future[Any]:
        """What its shadows say beside what was answered, as a struct. Authorised as verb "control"; NotFound."""

    def move(self, model: str, verb: str, move: Move, principal: Principal) -> asyncio.Future[Policy]:
        """Change who gets which version; the policy after it. Authorised as verb "control".

        NotFound; Conflict: the policy is not the one that it was decided on; Misconfigured: it asks for what is not
        there.
        """

    def session(self, model: str, token: str, principal: Principal) -> Turn:
        """Where the session that `token` belongs to stands: its id and the last step applied, or errors.NotFound."""

    def listens(self, principal: Principal) -> None:
        """Raise where nobody is heard here (NotFound), or not this principal (Forbidden): asked before a connection is
        given to live speech."""

    def speech(self, start: Start, principal: Principal) -> Awaitable[SpeechSession]:
        """Begin a live transcription, or go on with one. Authorised as verb "speech" of the recogniser. BadInput,
        Forbidden; NotFound: no such profile, or no session of that token; Conflict: another client is heard under it;
        Overloaded: no more sessions now."""

    def transcribe(self, recording: Recording, principal: Principal) -> asyncio.Future[Transcribed]:
        """Transcribe a file, as OpenAI's `/v1/audio/transcriptions` does. Authorised as `speech`; BadInput, NotFound,
        TooLarge, Overloaded."""

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the service (or one model of it) answers now."""

    def metrics(self) -> str:
        """The Prometheus text of every process of this service."""

    def principal(self, key: str | None, peer: str) -> Principal:
        """Who presents `key` from the address `peer`, or errors.Unauthenticated."""


def may_describe(door: Door, principal: Principal, model: str) -> bool:
    """Whether the principal may know of a model: lists leave out the others."""
    try:
        door.admit(principal, model, "describe")
    except errors.Forbidden:
        return False
    return True
