"""What is told of a session, in the order of its audio: through the gate, with its speakers, written before it is said.

Rules of the room:
- One thing after the other: whoever knows what was told knows all that came before it in the audio.
- A partial is told only while its segment has no newer one; a final always, once.
- What must not be lost (final texts, speakers, edits) is in the session's file before it is told. A disk that cannot
  take it costs the session its place to go on from, not its text: that is said once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal

from msgspec.structs import replace

from millstream import errors
from millstream.flows.speech.cut import Ended
from millstream.flows.speech.measured import PARTS
from millstream.flows.speech.outbox import Outbox
from millstream.flows.speech.recognise import Settled
from millstream.flows.speech.ribbon import Arrivals
from millstream.flows.speech.settings import FRAME, RATE, Profile
from millstream.flows.speech.speakers import Change, Moved, Speakers
from millstream.flows.speech.store import Held, Line, Place, State
from millstream.flows.speech.walk import Closed, Guessed, Noticed, Open, Over, Ticked, Walker
from millstream.flows.speech.wiring import Gate, Settling, Wiring
from millstream.spoken import (
    Correction,
    Edit,
    Edited,
    End,
    Metrics,
    Segment,
    Speaker,
    SpeakerTold,
    Told,
    Trouble,
    Vad,
    Word,
)

log = logging.getLogger(__name__)

RESERVE: Final = 512
"""Numbers that may be given before the file is written again: whoever goes on begins behind them."""
METRICS_TICKS: Final = 10
LINES_MAX: Final = 20_000
"""Final segments that may still be changed; older ones stay as they are."""
EMPTY: Final = 10 * FRAME
"""So much speech has a word in it."""
EDIT_CHARS_MAX: Final = 20_000
NAME_CHARS_MAX: Final = 200
DEGRADED: Final = ("", "hypotheses half as often", "no hypotheses")


class Teller:
    """Tells of one session. `state` is what its file says; `held` None: it has none."""

    def __init__(
        self,
        wiring: Wiring,
        profile: Profile,
        state: State,
        held: Held | None,
        walker: Walker,
        speakers: Speakers,
        gate: Gate,
        outbox: Outbox,
    ) -> None:
        self._wiring, self._profile, self._state, self._held = wiring, profile, state, held
        self._walker, self._speakers, self._gate, self._outbox = walker, speakers, gate, outbox
        self._numbers, self._now = wiring.numbers, wiring.clock.monotonic
        self.arrivals = Arrivals()
        self._ticks = 0
        self._first_ms = 0
        self._unwritten = False
        self._dropped = 0
        self._telling = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    async def tell(self) -> None:
        """Tell everything, until the audio is over."""
        jobs = self._walker.jobs
        while True:
            job = await jobs.get()
            await self._outbox.room()
            if isinstance(job, Closed):
                settled = await self._heard(job)
            async with self._telling:
                match job:
                    case Noticed():
                        self._say(Vad(seq=self._outbox.number(), state=_STATES[job.begins], t=job.at / RATE))
                    case Guessed():
                        self._guessed(job)
                    case Closed():
                        await self._closed(job, settled)
                    case Ticked():
                        await self._ticked(job)
                    case Over():
                        return await self._over(job)
                if self._outbox.next + RESERVE // 4 > self._state.seq:
                    await self._write(durable=False)

    async def begin(self) -> None:
        """Write where the session stands at first."""
        async with self._telling:
            await self._write(durable=False)

    async def edit(self, edit: Edit, by: str) -> None:
        """Tell what a person made of a final segment. NotFound, BadInput, TooLarge: nothing was changed."""
        if edit.text is None and edit.speaker is None:
            raise errors.BadInput("an edit without text and without speaker changes nothing: say one of them")
        if len(edit.text or "") > EDIT_CHARS_MAX or len(edit.speaker or "") > NAME_CHARS_MAX:
            raise errors.TooLarge(
                f"an edit of {len(edit.text or '')} characters by a speaker of {len(edit.speaker or '')}: at most "
                f"{EDIT_CHARS_MAX} and {NAME_CHARS_MAX} are taken"
            )
        if edit.speaker is not None and not edit.speaker.strip():
            raise errors.BadInput("an edit names an empty speaker: say an id, or a name")
        async with self._telling:
            line = self._state.lines.get(edit.segment)
            if line is None or self._state.ended:
                raise errors.NotFound(
                    f"no final segment {edit.segment[:80]!r} that can be changed: it is not final yet, or the session "
                    "is over"
                )
            text = None  # a long one takes a while to read, and other sessions have words to say
            if edit.text is not None:
                text = await asyncio.to_thread(self._gate.edit, edit.text)
            told: list[Told] = []
            speaker: Speaker | None = None
            if edit.speaker is not None:
                who = edit.speaker.strip()
                if all(who != known.name for known in self._speakers.known):
                    who = self._gate.name(who)
                speaker, changes = self._speakers.fix(edit.segment, who)
                speaker = replace(speaker, overlap=line.overlap)
                told += self._changes(changes)
            line.rev += 1
            line.who = line.who if speaker is None else speaker.id
            seq = self._outbox.number()
            edited = Edited(seq=seq, id=edit.segment, rev=line.rev, by=by, text=text, speaker=speaker)
            told.append(edited)
            await self._commit(told)
            self._look_at_edit(edited)

    async def written(self) -> None:
        """Return when nothing is being written any more: who stops the teller lets go of the file only then."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    # -- partials

    def _guessed(self, job: Guessed) -> None:
        segment, hypothesis = job.segment, job.hypothesis
        words, stable = self._gate.partial(hypothesis.words, hypothesis.stable, segment.onset / RATE)
        if not words and segment.shown is None:
            return
        self._revised(segment, words)
        at = self._now()
        if not self._first(segment, at):
            self._numbers.told.observe(max(0.0, at - self.arrivals.when(job.upto, at)))
        self._say(
            Segment(
                seq=self._outbox.number(),
                id=segment.id,
                rev=job.rev,
                state="stable" if stable == len(words) > 0 else "partial",
                start=segment.onset / RATE,
                end=job.upto / RATE,
                words=words,
                stable=stable,
                speaker=self._speakers.guess(segment.id, segment.heard_voices(job.upto)),
                lat_ms=self._ms(job.upto, at),
                language=self._walker.language or hypothesis.language,
            )
        )

    def _first(self, segment: Open, at: float) -> bool:
        """Count the first words of a segment; whether these are."""
        if segment.worded:
            return False
        segment.worded = True
        waited = max(0.0, at - self.arrivals.when(segment.onset, at))
        self._first_ms = round(waited * 1000)
        self._numbers.first_token.observe(waited)
        if self._first_ms > self._profile.first_token_ms_max:
            self._numbers.late.add()
        return True

    def _revised(self, segment: Open, words: Sequence[Word]) -> None:
        """Count the words that were shown and are others now."""
        texts = [word.text for word in words]
        if segment.shown is not None:
            same = next((n for n, (a, b) in enumerate(zip(segment.shown, texts, strict=False)) if a != b), None)
            kept = min(len(segment.shown), len(texts)) if same is None else same
            self._numbers.revised.add(len(segment.shown) - kept)
        segment.shown = texts

    # -- finals

    async def _heard(self, job: Closed) -> Settled:
        """Its final text, waited for, and its voices."""
        settled = await job.text if job.text is not None else Settled([])
        if job.text is not None and (failed := await job.segment.listened()):
            told = self._state.session, job.segment.id, failed[-1]
            log.warning("session %s, segment %s: who speaks was not heard in all of it: %r", *told)
        return settled

    async def _closed(self, job: Closed, settled: Settled) -> None:
        segment, ended, numbers = job.segment, job.ended, self._numbers
        told = self._changes(self._speakers.due(ended.at))
        numbers.suppressed.add(settled.suppressed)
        words, spans = self._gate.final(settled.words, ended.onset / RATE, ended.speech_end / RATE)
        finals: list[Segment] = []
        if words or segment.shown is not None:
            self._revised(segment, words)
            finals = self._finals(job, words, settled, told)
            numbers.segments.add()
            numbers.words.add(len(words))
        if not words and ended.speech >= EMPTY:
            numbers.empty.add()
        if settled.problem:
            numbers.failed.add()
            log.warning("session %s: a final text failed: %s", self._state.session, settled.problem)
            error = f"segment {segment.id} is told as far as it was stable: {settled.problem}"
            told.append(Trouble(code="final", error=error, fatal=False))
        self._state.place = job.place
        if told or finals:
            await self._commit(told)
        else:
            await self._write(durable=False)
        if finals:
            self._count(segment, ended, settled)
        if self._wiring.look is not None:
            self._look(job, settled, finals, spans)

    def _finals(self, job: Closed, words: list[Word], settled: Settled, told: list[Told]) -> list[Segment]:
        """The segment as it is told for good: one for each voice in a row. They are put behind `told`."""
        segment, ended, found = job.segment, job.ended, []
        voices, seen = segment.heard_voices(ended.speech_end), segment.heard_turns(ended.speech_end)
        runs = self._speakers.split(words, voices, segment.onset, ended.speech_end, seen)
        for n, run in enumerate(runs):
            ident = segment.id if n == 0 else f"{segment.id}.{n + 1}"
            shown = self._speakers.hear(ident, run.start, run.end, voices, ended.at, seen)
            told += self._changes(shown.told)
            found.append(
                Segment(
                    seq=self._outbox.number(),
                    id=ident,
                    rev=job.rev,
                    state="final",
                    start=run.start / RATE,
                    end=run.end / RATE,
                    words=words[run.first : run.last],
                    stable=run.last - run.first,
                    speaker=shown.speaker,
                    lat_ms=self._ms(ended.speech_end, self._now()),
                    language=self._walker.language or settled.language,
                )
            )
            told.append(found[-1])
            self._state.lines[ident] = Line(
                job.rev, run.start / RATE, run.end / RATE, shown.speaker.id, shown.speaker.overlap
            )
        while len(self._state.lines) > LINES_MAX:
            del self._state.lines[next(iter(self._state.lines))]
        return found

    def _count(self, segment: Open, ended: Ended, settled: Settled) -> None:
        at = self._now()
        self._first(segment, at)
        self._numbers.endpoint.observe(max(0.0, at - self.arrivals.when(ended.speech_end, at)))
        parts = (self.arrivals.late_s(ended.speech_end), settled.queue_s, settled.compute_s)
        for part, seconds in zip(PARTS, parts, strict=True):
            self._numbers.parts[part].observe(seconds)

    def _look(self, job: Closed, settled: Settled, finals: list[Segment], spans: list[tuple[float, float]]) -> None:
        ended, audio = job.ended, job.audio
        settling = Settling(
            session=self._state.session,
            told=finals,
            heard=settled,
            spans=spans,
            speech_s=ended.speech / RATE,
            first_s=ended.start / RATE,
            audio=lambda: audio.cut(ended.start, ended.end),
        )
        try:
            assert self._wiring.look is not None
            self._wiring.look(settling)
        except Exception:  # who looks on must not end what is looked at
            log.exception("session %s: looking at segment %s failed", self._state.session, job.segment.id)

    def _look_at_edit(self, edited: Edited) -> None:
        if self._wiring.edited is None:
            return
        try:
            self._wiring.edited(self._state.session, edited)
        except Exception:  # see _look
            log.exception("session %s: looking at an edit of %s failed", self._state.session, edited.id)

    # -- time passing

    async def _ticked(self, job: Ticked) -> None:
        self._ticks += 1
        told = self._changes(self._speakers.due(job.at))
        if job.place is not None:
            self._state.place = job.place
        if told:
            await self._commit(told)
        elif job.place is not None:
            await self._write(durable=False)
        if self._ticks % METRICS_TICKS == 0:
            self._say(self._metrics(job.at))
        self._numbers.dropped.add(self._outbox.dropped - self._dropped)
        self._dropped = self._outbox.dropped

    def _metrics(self, at: int) -> Metrics:
        return Metrics(
            seq=self._outbox.number(),
            rtf=round(self._walker.busy_s * RATE / max(at - self._walker.began_at, 1), 4),
            queue_ms=self._walker.queue_ms(),
            first_token_ms=self._first_ms,
            degraded=DEGRADED[min(self._wiring.load(), 2)],
        )

    async def _over(self, job: Over) -> None:
        told = self._changes(self._speakers.end(job.at))
        seq = self._outbox.number()
        told.append(End(seq=seq, last_seq=seq - 1, audio_ms=job.at * 1000 // RATE))
        at = job.place
        self._state.place = Place(audio_ms=at.audio_ms, samples=at.samples, segments=at.segments)  # and no sound
        self._state.ended = True
        await self._commit(told)
        if job.at > self._walker.began_at:
            self._numbers.rtf.observe(self._walker.busy_s * RATE / (job.at - self._walker.began_at))

    # -- telling

    def _changes(self, changes: Sequence[Change]) -> list[Told]:
        """What speakers say, with numbers and revisions."""
        told: list[Told] = []
        for change in changes:
            if not isinstance(change, Moved):
                seq = self._outbox.number()
                told.append(SpeakerTold(seq=seq, op=change.op, id=change.id, name=change.name, into=change.into))
            elif (line := self._state.lines.get(change.segment)) is not None:
                line.rev += 1
                self._numbers.flips.add(bool(line.who) and line.who != change.speaker.id)  # "unknown" was no mistake
                line.who = change.speaker.id
                told.append(
                    Correction(
                        seq=self._outbox.number(),
                        id=change.segment,
                        rev=line.rev,
                        speaker=change.speaker,
                        reason=change.reason,
                    )
                )
        return told

    async def _commit(self, told: list[Told]) -> None:
        """Write what is told, then tell it."""
        self._outbox.keep(told)
        await self._write(durable=True)
        self._outbox.put(told)

    async def _write(self, durable: bool) -> None:
        state = self._state
        state.seq, state.lost, state.ring = self._outbox.next + RESERVE, self._outbox.lost, list(self._outbox.ring)
        state.language = self._walker.language
        if self._held is None:
            return
        state.speakers, state.gate = self._speakers.save(), self._gate.save()
        now = self._wiring.clock.now()
        try:
            if durable:
                self._writing = asyncio.ensure_future(asyncio.to_thread(self._held.write, state, now))
                await asyncio.shield(self._writing)
            else:
                self._held.write(state, now, durable=False)
        except (OSError, errors.Full) as error:
            if not self._unwritten:
                log.error("session %s cannot be gone on with, should it end: %s", state.session, error)
            self._unwritten = True
        else:
            self._unwritten = False

    def _say(self, message: Told) -> None:
        """Tell what may be lost."""
        self._outbox.put([message])

    def _ms(self, sample: int, at: float) -> int:
        return round(max(0.0, at - self.arrivals.when(sample, at)) * 1000)


_STATES: Final[dict[bool, Literal["start", "end"]]] = {True: "start", False: "end"}
