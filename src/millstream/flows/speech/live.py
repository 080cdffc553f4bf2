"""The open sessions of a process: begun, gone on with, refused."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from millstream import errors
from millstream.flows.speech.languages import Languages
from millstream.flows.speech.pressure import Pressure
from millstream.flows.speech.session import Session
from millstream.flows.speech.settings import SpeechSettings
from millstream.flows.speech.sound import checked
from millstream.flows.speech.speakers import Speakers
from millstream.flows.speech.store import Held, State, Store, named
from millstream.flows.speech.wiring import Wiring
from millstream.spoken import Start

AGAIN: Final = 2
"""So many times the room of new sessions is there for those that are gone on with: another process may have died."""
log = logging.getLogger(__name__)


class Live:
    """`versions()`: of the recogniser those that answer now, the live one first. `room`: sessions at most. `folder`:
    where sessions are kept for whoever goes on with them; None: nobody can. `slots`: of a streaming recogniser, which
    bound all sessions, those that are gone on with too; 0: there are none."""

    def __init__(
        self,
        settings: SpeechSettings,
        wiring: Wiring,
        versions: Callable[[], Sequence[str]],
        room: int,
        folder: Path | None = None,
        slots: int = 0,
    ) -> None:
        self.room = room = min(room, slots or room)
        self._settings, self._versions = settings, versions
        self._most = min(AGAIN * room, slots or AGAIN * room)
        self._share = math.ceil(room * settings.key_share_max)
        self._pressure = Pressure(settings.degrade_queue_ms / 1000, wiring.clock)
        self._wiring = replace(wiring, load=self._pressure.level, waited=self._pressure.waited)
        self._clock = wiring.clock
        self._store = Store(folder) if folder is not None else None
        self._open: dict[str, Session] = {}
        self._languages = Languages(wiring)

    def __len__(self) -> int:
        return sum(not session.ended.is_set() for session in self._open.values())

    @property
    def pressed(self) -> int:
        """0 at ease, 1 or 2 overloaded; see pressure.py."""
        return self._pressure.level()

    async def open(self, start: Start, owner: str = "", key: bool = False) -> Session:
        """A session that has begun, or goes on by its token (within its `owner`); close it at last. `key`: the owner is
        one key of several, and leaves room to the others. BadInput: it asks for what there is not. Overloaded: it would
        harm those that run, or the owner has its share; who goes on finds twice the room, or all slots, and no share.
        NotFound, Conflict: it cannot be gone on with. Busy: another connection has it."""
        self._forget_closed()
        state, held = await (self._resumed(start, owner) if start.resume_token else self._begun(start, owner, key))
        session = None
        try:
            if start.resume_token and not state.ended:
                await self._heard_here(state)
            session = Session(state, self._settings, self._wiring, held)
            self._open[session.id] = session
            await session.open(start.seq)
        except BaseException:
            if session is not None:
                await session.close()
            elif held is not None:
                held.release()
            raise
        return session

    def sweep(self) -> None:
        """Delete what nobody goes on with any more. To be called now and then, also where nobody comes."""
        self._forget_closed()
        if self._store is not None:
            self._store.sweep(self._clock.now() - self._settings.resume_s)

    async def close(self) -> None:
        """Let go of all sessions: others may go on with them."""
        await asyncio.gather(*(session.close() for session in tuple(self._open.values())))

    def _let_in(self, owner: str, key: bool) -> None:
        its = sum(one.owner == owner and not one.ended.is_set() for one in self._open.values()) if key else 0
        if its >= self._share and self._share < self.room:
            raise errors.Overloaded(
                f"{owner!r} has {its} speech sessions open here, of {self._share} that one key may have "
                "(speech.key_share_max): end one, or come later",
                5.0,
            )
        if len(self) >= self.room or self._pressure.level():
            raise errors.Overloaded(
                f"{len(self)} speech sessions are open here, of {self.room}"
                f"{', and they wait for each other' if self._pressure.level() else ''}; try another server, or later",
                5.0,
            )

    async def _begun(self, start: Start, owner: str, key: bool) -> tuple[State, Held | None]:
        self._let_in(owner, key)
        checked(start.form, start.rate, start.channels)
        versions = self._versions()
        if not versions:
            raise errors.Busy(f"the recogniser {self._settings.recogniser!r} has no version that answers; try again")
        profile = self._settings.asked(start.profile, start.speakers)
        if self._wiring.embed is None and profile.speakers != "none":
            if start.speakers:
                raise errors.BadInput(f"speakers = {start.speakers!r}: nothing tells voices apart here; say 'none'")
            profile = msgspec.structs.replace(profile, speakers="none", instant=False)
        language = await self._languages.known(start.language or self._settings.language, versions[0])
        self._let_in(owner, key)  # others came meanwhile
        held, ident, secret = self._store.create() if self._store is not None else (None, *named())
        self._wiring.numbers.begun.add()
        return State(
            session=ident,
            secret=secret,
            owner=owner,
            start=start,
            profile=profile,
            model=self._settings.recogniser,
            version=versions[0],
            language=language,
            voice=self._wiring.voice_model,
        ), held

    async def _resumed(self, start: Start, owner: str) -> tuple[State, Held | None]:
        if self._store is None:
            raise errors.NotFound("sessions are not kept here, so none can be gone on with; begin a new one")
        began = self._store.look(start.resume_token, owner).start  # whoever may not have it does not disturb it
        if (start.form, start.rate, start.channels) != (began.form, began.rate, began.channels):
            raise errors.BadInput(
                f"the session was begun with {began.form} of {began.rate} Hz and {began.channels} channels, got "
                f"{start.form}, {start.rate} Hz, {start.channels}: go on with the same"
            )
        ours = self._open.get(start.resume_token.partition(".")[0])
        if ours is not None:
            await ours.close()
        if len(self) >= self._most:
            raise errors.Overloaded(
                f"{len(self)} speech sessions are open here, of {self._most} with those that are gone on with: go on "
                "in a moment, elsewhere"
            )
        held, state = self._store.take(start.resume_token, owner)
        state.resumed += 1
        self._wiring.numbers.resumed.add()
        return state, held

    async def _heard_here(self, state: State) -> None:
        """Let a session go on with what hears here now."""
        versions, model, voice = self._versions(), self._settings.recogniser, self._wiring.voice_model
        if state.model != model:
            log.warning("session %s goes on with %s, as %s hears here no more", state.session, model, state.model)
            state.model, state.version = model, next(iter(versions), "")
            try:
                state.language = await self._languages.known(state.language, state.version)
            except errors.BadInput:  # to be found out anew
                state.language = ""
        elif versions and state.version not in versions:
            log.warning("session %s goes on with version %s, as %s is gone", state.session, versions[0], state.version)
            state.version = versions[0]
        if state.voice and voice and state.voice != voice:
            log.warning("session %s goes on without its voices: %s is not %s", state.session, voice, state.voice)
            state.speakers = Speakers.unheard(state.speakers)
        state.voice = voice or state.voice

    def _forget_closed(self) -> None:
        self._open = {ident: session for ident, session in self._open.items() if not session.closed}
