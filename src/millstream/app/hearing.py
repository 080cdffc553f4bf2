"""Live speech of a process that answers: the session's parts put together, measured, and given to the Door."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millstream.app import voices
from millstream.app.installation import Installation
from millstream.app.looking import Looking
from millstream.app.transcribing import FETCH, streams
from millstream.engine import Engine
from millstream.errors import BadInput, Busy, Misconfigured, NotFound, Overloaded
from millstream.flows.speech import openai
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.offline import Offline
from millstream.flows.speech.pressure import Cost, fits, follows
from millstream.flows.speech.recognise import Asker
from millstream.flows.speech.session import Session
from millstream.flows.speech.settings import RATE, Profile
from millstream.flows.speech.speakers import Speakers
from millstream.flows.speech.wiring import Wiring
from millstream.flows.speech.words.gate import Gate
from millstream.front.door import Recording, Transcribed
from millstream.machine import cores
from millstream.meter import Meter
from millstream.models.model import Model, load
from millstream.models.speech.vad import Vad
from millstream.models.speech.voice import Voice
from millstream.spoken import Ack, Edit, End, Finish, Move, Start, Told, Trouble

logger = logging.getLogger("millstream")

TRIES = 5
"""Calls that a recogniser is measured by; the fastest counts: a machine that was busy with something else for a moment
must not keep a service from starting."""
STEP_S, SEGMENT_S = 4.0, 10.0
"""Seconds of audio of such a call, and of a segment whose final text is taken to cost as much for its length: made of
noise it would cost many times more than of speech, as no hypothesis is likely."""
RECORDINGS_MAX = 4
"""Files that are transcribed at once; one more is told to come again."""
OPENAI_MODEL = "whisper-1"
"""The name that programs made for OpenAI's service ask for: the recogniser, whatever it is."""


class Hearing:
    """The live sessions and the recordings of a process. `start` once the engine answers; until then Busy."""

    def __init__(self, installation: Installation, engine: Engine, meter: Meter) -> None:
        self._at, self._engine = installation, engine
        self._looking = Looking(installation, meter, lambda: next(iter(self._versions()), ""))
        self._settings = installation.settings.speech
        self.model = self._settings.recogniser
        self._numbers = Numbers(meter)
        self._voices = ThreadPoolExecutor(1, "millstream-voices")
        self._live: Live | None = None
        self._offline: Offline | None = None
        self._unfit: dict[str, str] = {}
        self._recordings = 0
        self._stopping = False

    async def start(self) -> None:
        """Load what hears, measure the recogniser, and refuse what it cannot do. NotFound: a model is not there, with
        the line that fetches it; Misconfigured: the recogniser is none, or too slow for a profile that is wanted."""
        settings, engine = self._settings, self._engine
        vad = Vad(self._loaded(settings.vad))
        voice = Voice(self._loaded(settings.voice)) if settings.voice else None
        if self.model not in engine.models():
            raise NotFound(self._no_model(self.model))
        inputs = {spec.name for spec in engine.describe(self.model).inputs}
        streaming, fills = streams(inputs, self.model), "samples" not in inputs
        cost = await self._cost(Asker(engine.submit, self.model, language=settings.language, fills=fills), streaming)
        room = settings.sessions_max or follows(settings.profile_of(""), cost, cores())
        self._refuse(cost)
        wiring = Wiring(
            submit=engine.submit,
            model=self.model,
            vad=vad,
            clock=self._at.clock,
            numbers=self._numbers,
            streaming=streaming,
            fills=fills,
            embed=self._embed(voice) if voice is not None else None,
            gate=Gate,
            speakers=self._speakers,
            look=self._looking,
            edited=self._looking.edited,
        )
        self._live = Live(settings, wiring, self._versions, room, self._at.folder / "state" / "speech")
        self._offline = Offline(wiring)
        logger.info(
            "speech: %s takes %.0f ms for a hypothesis; %d sessions at once", self.model, cost.step_s * 1000, room
        )

    async def open(self, start: Start, owner: str) -> Hearer:
        """A session, begun or gone on with; see Live.open. BadInput: also of a profile that is too much for this
        recogniser."""
        live = self._there(self._live)
        if not start.resume_token and (why := self._unfit.get(start.profile)) is not None:
            raise BadInput(f"profile {start.profile!r} is not offered here: {why}")
        return Hearer(self, await live.open(start, owner), owner)

    async def transcribe(self, recording: Recording) -> Transcribed:
        """A file as OpenAI's clients expect it. BadInput, NotFound, TooLarge; Overloaded: as many as may are on their
        way."""
        offline = self._there(self._offline)
        form = openai.read([(name, value) for name, values in recording.fields.items() for value in values])
        if form.model not in (self.model, OPENAI_MODEL):
            raise NotFound(f"no model {form.model[:80]!r} transcribes here; ask for {self.model} or {OPENAI_MODEL}")
        if self._recordings >= RECORDINGS_MAX:
            raise Overloaded(f"{RECORDINGS_MAX} recordings are being transcribed; try again", 5.0)
        self._recordings += 1
        try:
            made = await offline.transcribe(BytesIO(recording.data), recording.name, form.language)
        finally:
            self._recordings -= 1
        kind, content = openai.answer(form, made.lines, made.language, made.seconds, made.who)
        return Transcribed(content, kind)

    async def close(self) -> None:
        """Send the clients elsewhere; others may go on with their sessions."""
        self._stopping = True
        if self._live is not None:
            await self._live.close()
        self._voices.shutdown(wait=False)
        await asyncio.to_thread(self._looking.close)

    @property
    def stopping(self) -> bool:
        """Whether sessions end because this process does."""
        return self._stopping

    def _there(self, part: Any) -> Any:
        if part is None or self._stopping:
            raise Busy("this process is starting or stopping; ask another, or again in a moment")
        return part

    def _versions(self) -> Sequence[str]:
        """Of the recogniser, those that answer, the live one first."""
        live = self._at.repository.policy(self.model).live
        answer = self._engine.describe(self.model).versions if self.model in self._engine.models() else ()
        return sorted(answer, key=lambda version: version != live)

    def _speakers(self, profile: Profile, saved: dict[str, Any] | None) -> Speakers:
        known = voices.known(self._at.folder, self._settings)
        if saved is not None:
            return Speakers.restored(saved, known)
        policy = profile.speakers if self._settings.voice else "none"
        return Speakers(policy, decide_s=profile.decide_s, horizon_s=profile.horizon_s, known=known)

    def _embed(self, voice: Voice) -> Any:
        async def embed(sounds: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            return await asyncio.get_running_loop().run_in_executor(self._voices, voice.embed, sounds)

        return embed

    def _loaded(self, name: str) -> Model:
        repository = self._at.repository
        if name not in repository.models():
            raise NotFound(self._no_model(name))
        return load(repository, name, repository.policy(name).live, self._at.settings.device)

    def _no_model(self, name: str) -> str:
        models = self._at.folder / "models"
        return f"[speech] wants a model {name!r}, which {models} has not; fetch it: {FETCH.format(name, models)}"

    def _refuse(self, cost: Cost) -> None:
        """What the recogniser is too slow for: at the start, where it is the default or configured; else when it is
        asked for."""
        settings = self._settings
        for name in settings.names():
            if (why := fits(settings.profile_of(name), cost)) is None:
                continue
            if name in settings.profiles or name == settings.profile:
                raise Misconfigured(f"speech.profiles.{name} with recogniser {self.model!r}: {why}")
            self._unfit[name] = why

    async def _cost(self, asker: Asker, streaming: bool) -> Cost:
        """What the recogniser takes here."""
        if streaming:  # a step is as long as what is new, and costs little
            return Cost(0.0)
        here = self._at.settings.device == "cpu"
        step_s = min([await _timed(asker, here) for _ in range(TRIES)])
        return Cost(step_s, step_s * SEGMENT_S / STEP_S, SEGMENT_S)


class Hearer:
    """A session as the border holds it: `front.door.SpeechSession`."""

    def __init__(self, hearing: Hearing, session: Session, owner: str) -> None:
        self._hearing, self._session, self._owner = hearing, session, owner
        self.hear, self.close = session.hear, session.close

    async def say(self, said: Ack | Edit | Finish) -> None:
        """See Session."""
        await self._session.say(said, self._owner)

    async def messages(self) -> AsyncIterator[Told]:
        """What the session tells; where it ends because this process does, the client is sent elsewhere."""
        last: Told | None = None
        async for told in self._session.messages():
            last = told
            yield told
        if self._hearing.stopping and not isinstance(last, End | Trouble):
            yield Move(why="this server stops: connect again, with the token")


async def _timed(asker: Asker, here: bool) -> float:
    """Seconds of a hypothesis. `here`: the cores compute it, and what others take of them meanwhile does not count, as
    several processes that start at once would else refuse each other."""
    # No speech, and no silence that a recogniser might pass over.
    sound = (0.05 * np.random.default_rng(0).standard_normal(int(STEP_S * RATE))).astype(np.float32)
    began, spent = time.perf_counter(), time.process_time()
    await asker.heard(sound, timeout_s=60.0)
    took = time.perf_counter() - began
    return min(took, time.process_time() - spent) if here else took
