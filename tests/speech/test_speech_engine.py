"""What live speech leaves in the engine and takes from it: slots of a streaming recogniser, and what it heard last."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from speech_house import RATE, STREAM, Desk, LoudVad, live, pcm, read_all, talk

from millstream import errors
from millstream.clock import SystemClock
from millstream.engine import Engine
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import SpeechSettings
from millstream.flows.speech.wiring import OpenGate, Wiring
from millstream.meter import Meter
from millstream.models.manifest import Manifest, Sessions
from millstream.models.repository import Repository
from millstream.models.runtimes.scripted import speak
from millstream.spoken import Start
from millstream.types import Request, Turn

SLOTS = 3
DATA = pcm(talk("one two three four", "seven"))


@asynccontextmanager
async def streaming(folder):
    """An engine whose model "fake" streams, with SLOTS slots."""
    manifest = Manifest(format="scripted", file="script.json", sessions=Sessions(slots=SLOTS))
    Repository(folder).put("fake", manifest, {"script.json": msgspec.json.encode(STREAM)})
    engine = Engine(Repository(folder), SystemClock(), Meter())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def hall(submit, folder, **more):
    wiring = Wiring(
        submit=submit, model="fake", vad=LoudVad(), clock=SystemClock(), numbers=Numbers(Meter()), streaming=True
    )
    return Live(SpeechSettings(recogniser="fake"), replace(wiring, **more), lambda: ["1"], 9, folder)


def test_what_a_recogniser_heard_is_not_handed_over_to_the_next_process(tmp_path):
    sound = speak(STREAM, ["one", "two"])
    inputs = {"audio": sound[None], "samples": np.array([len(sound)], np.int32), "end": np.array([False])}
    asked = Request("fake", inputs, 1, turn=Turn(id="a", start=True))

    async def run():
        async with streaming(tmp_path / "models") as engine:
            output = await engine.submit(asked)
            assert b"one" in output.outputs["heard"][0]
            await engine.stop(tmp_path / "sessions")

    asyncio.run(run())
    assert not (tmp_path / "sessions").exists()


class Broken(OpenGate):
    def partial(self, *more):
        raise RuntimeError("boom")

    final = partial


@pytest.mark.parametrize("ending", ["a lost connection", "a part that fails", "an answer that never came"])
def test_the_slot_of_a_session_is_free_once_it_is_over(tmp_path, ending):
    async def run():
        async with streaming(tmp_path / "models") as engine:
            lane, asked = engine.lane("fake"), []

            async def unheard(request):
                asked.append(await engine.submit(request))
                return await asyncio.Future() if not request.turn.end else asked[-1]

            submit = unheard if ending == "an answer that never came" else engine.submit
            more = {"gate": Broken} if ending == "a part that fails" else {}
            live = hall(submit, tmp_path / "run", **more)
            session, heard = await live.open(Start()), []
            reader = asyncio.create_task(read_all(session, heard))
            await session.hear(DATA[: RATE * 2 * 2])  # the first sentence is not over
            async with asyncio.timeout(20):
                while not lane.sessions:
                    await asyncio.sleep(0)
                if "gate" in more:
                    await session.ended.wait()
                else:
                    while not asked and len(heard) < 3:
                        await asyncio.sleep(0)
                    await session.close()
            assert (lane.sessions, len(lane.slots_free)) == (0, SLOTS)
            await session.close()
            await reader

    asyncio.run(run())


def test_who_goes_on_with_a_session_in_the_same_process_has_a_slot_and_all_words(tmp_path):
    async def run():
        async with streaming(tmp_path / "models") as engine:
            live = hall(engine.submit, tmp_path / "run")
            session, texts = await live.open(Start()), []
            for number in range(6):  # more often than there are slots
                heard = []
                reader = asyncio.create_task(read_all(session, heard))
                async with asyncio.timeout(20):
                    while not heard:
                        await asyncio.sleep(0)
                at = heard[0].audio_ms * RATE // 1000 * 2
                await session.hear(DATA[at : None if number == 5 else RATE * 2 * 2])
                if number == 5:
                    session.finish()
                    await reader
                    texts = [one.text for one in heard if getattr(one, "state", "") == "final"]
                    break
                session = await live.open(Start(resume_token=session.token))
                await reader
            await session.close()
            assert len(engine.lane("fake").slots_free) == SLOTS
            return texts

    assert asyncio.run(run()) == ["one two three four", "seven"]


def test_no_more_sessions_are_let_in_than_there_are_slots_whoever_comes(tmp_path):
    async def run():
        small = live(Desk(STREAM), tmp_path, room=9, slots=2)
        assert small.room == 2
        for _ in range(2):
            await small.open(Start())
        with pytest.raises(errors.Overloaded, match="2 speech sessions are open here, of 2;"):
            await small.open(Start())
        await small.close()
        before, after = live(Desk(STREAM), tmp_path, room=9), live(Desk(STREAM), tmp_path, room=2, slots=3)
        parted = [await before.open(Start()) for _ in range(4)]
        await before.close()
        gone_on = [await after.open(Start(resume_token=one.token)) for one in parted[:3]]
        with pytest.raises(errors.Overloaded, match="of 3 with those that are gone on with"):
            await after.open(Start(resume_token=parted[3].token))
        await gone_on[0].close()
        await after.open(Start(resume_token=parted[3].token))
        await after.close()

    asyncio.run(run())
