"""Live speech of a process that answers: the session's parts put together, measured, and given to the Door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

from msgspec.structs import replace

from millstream.app import voices
from millstream.app.installation import Installation
from millstream.app.looking import Looking
from millstream.app.transcribing import streams
from millstream.engine import Engine
from millstream.errors import BadInput, Busy, Error, Misconfigured, NotFound, Overloaded
from millstream.flows.served import ServedLog
from millstream.flows.speech import openai
from millstream.flows.speech.languages import tag
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.offline import Offline
from millstream.flows.speech.pressure import Cost, fits, follows
from millstream.flows.speech.recognise import Asker
from millstream.flows.speech.session import Session
from millstream.flows.speech.settings import Profile
from millstream.flows.speech.speakers import Known, Speakers
from millstream.flows.speech.trial import ELSEWHERE, HERE, Clocks, listening, trial
from millstream.flows.speech.wiring import Wiring
from millstream.flows.speech.words.gate import Gate
from millstream.front.door import Recording, Transcribed
from millstream.guard.pii import pseudonym
from millstream.machine import cores
from millstream.meter import Meter
from millstream.models.model import Model, load
from millstream.models.speech.shelf import missing
from millstream.models.speech.turns import Turns
from millstream.models.speech.vad import Vad
from millstream.models.speech.voice import Voice
from millstream.spoken import Ack, Edit, End, Finish, Move, Start, Told, Trouble
from millstream.types import Served

logger = logging.getLogger("millstream")

TRIALS = 4
"""A recogniser that is too slow for the default profile is measured so often before that is believed."""
TRIAL_PAUSE_S = 1.0
RECORDINGS_MAX = 4
"""Files that are transcribed at once; one more is told to come again."""
TIDY_S = 60.0
"""Between two looks for what is kept no longer."""
OPENAI_MODEL = "whisper-1"
"""The name that programs made for OpenAI's service ask for: the recogniser, whatever it is."""


class Hearing:
    """The live sessions and the recordings of a process. `start` once the engine answers; until then Busy. `served`:
    where it is written whose a session is."""

    def __init__(
        self, installation: Installation, engine: Engine, meter: Meter, served: ServedLog | None = None
    ) -> None:
        self._at, self._engine, self._served = installation, engine, served
        self._looking = Looking(installation, meter, lambda: next(iter(self._versions()), ""))
        self._settings = installation.settings.speech
        self.model = self._settings.recogniser
        self._numbers = Numbers(meter)
        self._voices = ThreadPoolExecutor(1, "millstream-voices")
        self._live: Live | None = None
        self._offline: Offline | None = None
        self._held: dict[str, str] = {}  # of what hears beside the recogniser, the version that was loaded
        self._seen: dict[str, str] = {}  # and the one last seen live
        self._voice = ""  # what tells voices here, as enrolled ones are marked
        self._unfit: dict[str, str] = {}
        self._recordings = 0
        self._stopping = False
        self._tidying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what hears, measure the recogniser, and refuse what it cannot do. NotFound: a model is not there, with
        the line that fetches it; Misconfigured: the recogniser is none, or too slow for a profile that is wanted."""
        settings, engine = self._settings, self._engine
        hears = self.model, settings.vad, settings.voice, settings.turns
        if lacks := missing(self._at.repository, filter(None, hears)):
            raise NotFound(f"[speech]: {lacks}")
        vad = Vad(self._loaded(settings.vad))
        self._voice = voices.stamp(self._at.folder, settings)
        voice = Voice(self._loaded(settings.voice)) if settings.voice else None
        self._nobody(self._known(settings.profile_of("").speakers == "enrolled"))
        if self.model not in engine.models():
            raise NotFound(f"[speech]: no version of {self.model!r} answers; the lines before say why")
        inputs = {spec.name for spec in engine.describe(self.model).inputs}
        streaming, fills = streams(inputs, self.model), "samples" not in inputs
        turns = Turns(self._loaded(settings.turns)) if settings.turns else None
        beside = partial(asyncio.get_running_loop().run_in_executor, self._voices)
        embed = partial(beside, voice.embed) if voice is not None else None
        listen = partial(beside, turns.spoken) if turns is not None else None
        try:
            asker = Asker(engine.submit, self.model, language=tag(settings.language), fills=fills)
            cost = await self._cost(asker, streaming)
        except BadInput as error:
            raise Misconfigured(f"[speech] with recogniser {self.model!r}: {error}") from None
        cost = replace(cost, voices_s=await listening(embed, listen))
        config, cpus = engine.config(self.model), cores() / self._at.settings.workers
        room = settings.sessions_max or follows(settings.profile_of(""), cost, cpus)
        self._refuse(cost)
        wiring = Wiring(
            submit=engine.submit,
            model=self.model,
            vad=vad,
            clock=self._at.clock,
            numbers=self._numbers,
            streaming=streaming,
            fills=fills,
            embed=embed,
            listen=listen,
            voice_model=self._voice,
            gate=Gate,
            speakers=self._speakers,
            look=self._looking,
            edited=self._looking.edited,
        )
        folder = self._at.folder / "state" / "speech"
        self._live = Live(settings, wiring, self._versions, room, folder, config.sessions)
        # One instance stays with live speech, where there are several: a segment of a recording takes one for long.
        self._offline = Offline(wiring, at_once=max(1, min(config.instances, int(cpus)) - 1))
        self._tidying = asyncio.create_task(self._tidy(self._live))
        logger.info(
            "speech: %s takes %.0f ms for a hypothesis and %.0f ms for %g s of final text; %d sessions at once here",
            self.model, cost.step_s * 1000, cost.final_s * 1000, cost.segment_s, self._live.room,
        )  # fmt: skip

    def hides(self, model: str) -> bool:
        """Whether a model says words that have not passed the gate: callers get those of sessions alone."""
        return model == self.model or self._engine.hears(model)

    async def open(self, start: Start, owner: str, key: bool = False) -> Hearer:
        """A session, begun or gone on with; see Live.open. BadInput: also of a profile that is too much for this
        recogniser."""
        live = self._there(self._live)
        if not start.resume_token and (why := self._unfit.get(start.profile)) is not None:
            raise BadInput(f"profile {start.profile!r} is not offered here: {why}")
        start = replace(start, user=pseudonym(start.user))
        session = await live.open(start, owner, key)
        try:
            if start.user and not start.resume_token and self._served is not None:
                await self._served.append(self._whose(session, start.user))
        except BaseException:
            await session.close()
            raise
        return Hearer(self, session, owner)

    def _whose(self, session: Session, user: str) -> Served:
        """What says whose a session is: by it `forget` finds what is kept of the session (app/forget.py)."""
        return Served(
            request=session.id,
            model=self.model,
            version=session.version,
            policy=0,
            arm="live",
            user=user,
            candidates=[],
            event_time=self._at.clock.now(),
        )

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
            language = form.language or self._settings.language
            version = next(iter(self._versions()), "")
            made = await offline.transcribe(
                BytesIO(recording.data), recording.name, language, version=version,
                seconds_max=self._at.settings.http.recording_s_max,
            )  # fmt: skip
        finally:
            self._recordings -= 1
        # Beside the event loop: a long one takes seconds.
        kind, content = await asyncio.to_thread(openai.answer, form, made.lines, made.language, made.seconds, made.who)
        return Transcribed(content, kind)

    async def close(self) -> None:
        """Send the clients elsewhere; others may go on with their sessions."""
        self._stopping = True
        if self._tidying is not None:
            self._tidying.cancel()
        if self._live is not None:
            await self._live.close()
        self._voices.shutdown(wait=False)
        await asyncio.to_thread(self._looking.close)

    @property
    def stopping(self) -> bool:
        """Whether sessions end because this process does."""
        return self._stopping

    async def _tidy(self, live: Live) -> None:
        """Delete what is kept no longer, now and then, until cancelled."""
        while True:
            try:
                live.sweep()
                self._outdated()
                await asyncio.to_thread(self._looking.expire)
            except OSError as error:
                logger.warning("speech: what is kept no longer is not deleted: %s", error)
            await self._at.clock.sleep(TIDY_S)

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
        known = self._known(profile.speakers == "enrolled")
        if saved is not None:
            return Speakers.restored(saved, known)
        policy = profile.speakers if self._settings.voice else "none"
        return Speakers(policy, decide_s=profile.decide_s, horizon_s=profile.horizon_s, known=known)

    def _known(self, needed: bool) -> list[Known]:
        """The voices that are enrolled now. Misconfigured: another model made them than the one here, and they are
        `needed`; else speakers have no names."""
        try:
            return voices.known(self._at.folder, self._voice)
        except Misconfigured as error:
            if needed:
                raise
            logger.warning("speech: nobody is called by name: %s", error)
            return []

    def _nobody(self, known: Sequence[Known]) -> None:
        """Say which profiles that are wanted name those alone who are enrolled, where nobody is."""
        settings = self._settings
        wanted = sorted({settings.profile, *settings.profiles})
        if settings.voice and not known:
            for name in [name for name in wanted if settings.profile_of(name).speakers == "enrolled"]:
                logger.warning(
                    'speech: nobody is enrolled, so in profile %s every speaker is "unknown": '
                    "millstream speech enrol NAME FILE... -c millstream.toml",
                    name,
                )

    def _loaded(self, name: str) -> Model:
        repository = self._at.repository
        version = repository.policy(name).live
        self._held[name] = self._seen[name] = version
        return load(repository, name, version, self._at.settings.device)

    def _outdated(self) -> None:
        """Say once of each promotion that what a session's parts are made of is not exchanged under it."""
        for name, held in self._held.items():
            try:
                live = self._at.repository.policy(name).live
            except Error:  # who reads policies says what is wrong with this one
                continue
            if live != held and live != self._seen[name]:
                logger.warning(
                    "speech: %s %s was promoted, and this process hears with version %s until it is started again",
                    name, live, held,
                )  # fmt: skip
            self._seen[name] = live

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

    @property
    def _clocks(self) -> Clocks:
        """By which the recogniser is measured."""
        return HERE if self._at.settings.device == "cpu" else ELSEWHERE

    async def _cost(self, asker: Asker, streaming: bool) -> Cost:
        """What the recogniser takes here, at best."""
        profile = self._settings.profile_of("")
        best = await trial(asker, profile, streaming, self._clocks)
        for _ in range(TRIALS - 1):
            if fits(profile, best) is None:
                break
            await asyncio.sleep(TRIAL_PAUSE_S)
            best = min(best, await trial(asker, profile, streaming, self._clocks), key=lambda cost: cost.step_s)
        return best


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
        over = isinstance(last, End) or (isinstance(last, Trouble) and last.fatal)
        if self._hearing.stopping and not over:
            yield Move(why="this server stops: connect again, with the token")
