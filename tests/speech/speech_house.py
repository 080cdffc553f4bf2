"""Sessions over a scripted recogniser, on a clock that the test owns, and ways to feed and read them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np

from millstream import errors
from millstream.clock import FakeClock
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import FRAME, RATE, SpeechSettings
from millstream.flows.speech.wiring import Wiring
from millstream.meter import Meter
from millstream.models.runtimes.scripted import Script, Scripted, ScriptedStream, speak
from millstream.models.speech.vad import Hearing
from millstream.spoken import Start, Transcript
from millstream.types import Output, Ran, Turn

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = (*DIGITS, "stop.", "hello", "world", "again", "more")
SCRIPT = Script(words=WORDS, by="tone")
STREAM = Script(words=WORDS, by="tone", kind="streaming")


class LoudVad:
    """Speech is what is loud: frames over -45 dB. Its numbers do not depend on grouping."""

    def fresh(self):
        return Hearing(np.zeros((1, 1, 128), "f4"), np.zeros((1, 1, 128), "f4"), np.zeros(64, "f4"))

    def probabilities(self, sound, hearing):
        frames = sound.reshape(-1, FRAME)
        loud = np.sqrt(np.einsum("ij,ij->i", frames, frames) / FRAME)
        return np.where(loud > 10 ** (-45 / 20), 0.95, 0.02).astype("f4"), hearing


class Desk:
    """`submit` as the engine's, over a scripted model in this thread: each call takes `cost_s` of the clock, and fails
    where `fails(inputs, priority)` gives an error. `asked` holds (model inputs, priority) of every call."""

    def __init__(self, script=SCRIPT, clock=None, cost_s=0.0, fails=lambda inputs, priority: None):
        self.script, self.clock, self.cost_s, self.fails = script, clock, cost_s, fails
        self.model = Scripted(script) if script.kind == "windowed" else None
        self.slots = ScriptedStream(script).slots(64) if script.kind == "streaming" else None
        self.turns: dict[str, list] = {}
        self.asked = []
        self.left = set()
        self.lost = lambda inputs: None  # an error in the place of an answer, although the step was made

    def submit(self, request):
        return asyncio.ensure_future(self.answer(request))

    async def answer(self, request):
        self.asked.append((request.inputs, request.priority))
        if self.cost_s:
            await self.clock.sleep(self.cost_s)
        if (error := self.fails(request.inputs, request.priority)) is not None:
            raise error
        inputs = {**request.inputs, "samples": np.array([request.inputs["audio"].shape[1]], "i4")}
        ran = Ran(1, 1, compute_s=self.cost_s)
        if self.model is not None:
            return Output(self.model.predict(inputs), request.model, "1", ran=ran)
        turn = request.turn
        if turn.end and turn.id not in self.turns:
            raise errors.NotFound("no such session")
        if turn.start:
            number = len(self.turns)
            known = self.turns[turn.id] = [number, 0, f"t{number}"]
            self.slots.reset(np.array([number]))
        else:
            known = self.turns[turn.id]
            leaves = turn.end and not turn.step and turn.token in ("", known[2])
            assert leaves or (turn.token, turn.step) == (known[2], known[1] + 1), "a step was lost or doubled"
        known[1] += 1
        found = self.slots.step(inputs, np.array([known[0]]))
        if turn.end:
            self.left.add(turn.id)
        if (error := self.lost(inputs)) is not None:
            raise error
        return Output(found, request.model, "1", ran=ran, turn=Turn(id=turn.id, step=known[1], token=known[2]))


def live(desk, folder=None, clock=None, profile="caption", room=100, vad=None, slots=0, **more):
    """A Live over a desk, with a detector. `more`: fields of SpeechSettings and of Wiring."""
    clock = clock or FakeClock()
    fields = set(SpeechSettings.__struct_fields__)
    settings = {name: more.pop(name) for name in list(more) if name in fields}
    numbers = Numbers(Meter())
    wiring = Wiring(
        submit=desk.submit,
        model="fake",
        vad=vad or LoudVad(),
        clock=clock,
        numbers=numbers,
        streaming=desk.slots is not None,
    )
    return Live(
        SpeechSettings(**{"recogniser": "fake", "profile": profile, **settings}),
        replace(wiring, **more),
        lambda: ["1"],
        room,
        folder,
        slots,
    )


def talk(*sentences, gap_s=1.2, lead_s=0.5, script=SCRIPT):
    """Sound of sentences, words with a space between, with silence around each. float32."""
    pause = np.zeros(int(gap_s * RATE), "f4")
    found = [np.zeros(int(lead_s * RATE), "f4")]
    for sentence in sentences:
        found += [speak(script, sentence.split()), pause]
    return np.concatenate(found)


def pcm(sound):
    """Float audio as bytes of PCM16."""
    return np.round(np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes()


def cuts(data, sizes):
    """`data` in pieces of these sizes, again and again."""
    at, n = 0, 0
    while at < len(data):
        yield data[at : at + sizes[n % len(sizes)]]
        at += sizes[n % len(sizes)]
        n += 1


async def read_all(session, into):
    async for told in session.messages():
        into.append(told)


async def said(hall, data, sizes=(3200,), start=None):
    """Everything that a new session tells of audio, from Ready to End."""
    session = await hall.open(start or Start())
    heard = []
    reader = asyncio.create_task(read_all(session, heard))
    for piece in cuts(data, sizes):
        await session.hear(piece)
    session.finish()
    await asyncio.wait_for(reader, 100)
    await session.close()
    return heard


def finals(heard):
    return [told for told in heard if getattr(told, "state", "") == "final"]


def fold(heard):
    held = Transcript()
    for told in heard:
        held.hear(told)
    return held


@asynccontextmanager
async def ticking(clock, step_s=0.01):
    """A fake clock that goes on by itself, as fast as the loop lets it."""

    async def tick():
        while True:
            for _ in range(5):
                await asyncio.sleep(0)
            clock.advance(step_s)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()
