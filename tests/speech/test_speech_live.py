"""Who is let in, on which version, and the whole way through a real engine."""

import asyncio
import os

import msgspec
import numpy as np
import pytest
from speech_house import SCRIPT, STREAM, Desk, LoudVad, finals, live, pcm, read_all, said, talk

from millstream import errors
from millstream.clock import FakeClock, SystemClock
from millstream.engine import Engine
from millstream.flows.speech.cut import frames
from millstream.flows.speech.live import Live
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import FRAME, ProfileSaid, SpeechSettings
from millstream.flows.speech.store import Store
from millstream.flows.speech.wiring import Wiring
from millstream.meter import Meter
from millstream.models.manifest import Manifest, Sessions
from millstream.models.repository import Repository
from millstream.models.speech import tensors
from millstream.spoken import Metrics, Segment, Start, Trouble

TALK = ("one two three four", "seven", "hello world again more zero one two three")


def test_more_sessions_than_there_is_room_for_are_refused_and_those_that_ended_make_room():
    async def run():
        hall = live(Desk(), room=2)
        one, two = await hall.open(Start()), await hall.open(Start())
        with pytest.raises(errors.Overloaded, match="2 speech sessions are open here, of 2"):
            await hall.open(Start())
        two.finish()
        async for _ in two.messages():
            pass
        three = await hall.open(Start())
        assert len(hall) == 2
        await hall.close()
        assert one.ended.is_set() and three.ended.is_set() and len(hall) == 0

    asyncio.run(run())


def test_one_key_leaves_room_to_the_others():
    async def run():
        hall = live(Desk(), room=6, key_share_max=0.5)
        first, *_ = [await hall.open(Start(), "ann", True) for _ in range(3)]
        with pytest.raises(errors.Overloaded, match=r"'ann' has 3 speech sessions.*of 3 .*key_share_max") as refused:
            await hall.open(Start(), "ann", True)
        assert refused.value.retry_after_s > 0
        await hall.open(Start(), "bob", True)
        first.finish()
        async for _ in first.messages():
            pass
        await hall.open(Start(), "ann", True)
        await hall.close()
        assert [await hall.open(Start(), "ann") for _ in range(6)]  # the only one: nobody else comes
        await hall.close()

    asyncio.run(run())


def test_a_share_of_a_small_room_is_all_of_it_and_what_goes_on_is_not_refused(tmp_path):
    async def run():
        small = live(Desk(), room=3)
        for _ in range(3):
            await small.open(Start(), "ann", True)
        with pytest.raises(errors.Overloaded, match="of 3; try another"):
            await small.open(Start(), "ann", True)
        await small.close()
        hall = live(Desk(), tmp_path, room=4, key_share_max=0.5)
        old = [await hall.open(Start(), "ann", True) for _ in range(2)]
        for session in old:
            await session.close()
        for _ in range(2):
            await hall.open(Start(), "ann", True)
        again = [await hall.open(Start(resume_token=session.token), "ann", True) for session in old]
        assert len(hall) == 4 and all(session.owner == "ann" for session in again)
        await hall.close()
        one = live(Desk(), tmp_path, room=1)
        parted = [await hall.open(Start()) for _ in range(3)]
        await hall.close()
        two = [await one.open(Start(resume_token=session.token)) for session in parted[:2]]
        with pytest.raises(errors.Overloaded, match="of 2 with those that are gone on with"):
            await one.open(Start(resume_token=parted[2].token))
        await two[0].close()
        await one.open(Start(resume_token=parted[2].token))
        await one.close()

    asyncio.run(run())


def test_a_process_under_pressure_takes_no_new_session_until_it_is_at_ease():
    async def run():
        clock = FakeClock()
        hall = live(Desk(), clock=clock, degrade_queue_ms=500)
        for _ in range(30):
            hall._wiring.waited(0.6)
        assert hall.pressed == 1
        with pytest.raises(errors.Overloaded, match="wait for each other"):
            await hall.open(Start())
        for _ in range(30):
            hall._wiring.waited(1.2)
        assert hall.pressed == 2
        clock.advance(6)
        await (await hall.open(Start())).close()

    asyncio.run(run())


def test_what_is_asked_for_and_is_not_there_is_a_clients_mistake():
    async def run():
        hall = live(Desk())
        for start in (
            Start(profile="parliament"),
            Start(speakers="everybody"),
            Start(speakers="delayed"),  # no model tells voices apart
            Start(form="opus", channels=5),
        ):
            with pytest.raises(errors.BadInput):
                await hall.open(start)
        with pytest.raises(errors.NotFound):
            await hall.open(Start(resume_token="0123456789abcdef.0123456789abcdef"))

    asyncio.run(run())


def test_a_token_that_is_not_right_makes_no_room(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path, room=1)
        session = await hall.open(Start())
        with pytest.raises(errors.NotFound):
            await hall.open(Start(resume_token=f"{session.id}.0123456789abcdef"))
        with pytest.raises(errors.Overloaded):
            await hall.open(Start())
        await hall.close()
        assert session.ended.is_set()

    asyncio.run(run())


def test_sessions_that_end_while_others_begin_are_in_nobodys_way(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        old = [await hall.open(Start()) for _ in range(3)]
        for session in old:
            session.finish()
            await asyncio.wait_for(session.ended.wait(), 30)
        gone_on = await hall.open(Start(resume_token=old[2].token))
        new = await asyncio.gather(*(hall.open(Start()) for _ in range(3)))
        assert len(hall) == 3 and gone_on.ended.is_set()
        old[0].ack(10**6)  # it was not closed by who came: what it was told may still be acknowledged
        assert not list(tmp_path.glob(f"{old[0].id}.*"))
        await hall.close()
        hall.sweep()
        assert not hall._open and all(session.ended.is_set() for session in new)

    asyncio.run(run())


def test_a_session_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    def broken(profile, saved):
        raise errors.Missing("no voices here")

    async def run():
        hall = live(Desk(), tmp_path, speakers=broken)
        with pytest.raises(errors.Missing):
            await hall.open(Start())
        assert len(hall) == 0

    asyncio.run(run())
    (lock,) = tmp_path.iterdir()
    os.utime(lock, (0, 0))
    assert Store(tmp_path).sweep(before=1.0) == 0 and not lock.exists()  # nobody holds it


def test_a_language_that_nobody_knows_is_refused_at_the_start_and_a_region_is_left_out(tmp_path):
    def fails(inputs, priority):
        return errors.BadInput("not known to this model; it knows: en, zh") if inputs["language"][0] == "xx" else None

    async def run():
        desk = Desk(fails=fails)
        hall = live(desk, tmp_path)
        for odd, why in (("klingon", "say a code"), ("e" * 10**6, "say a code"), ("xx", "it knows: en, zh")):
            with pytest.raises(errors.BadInput, match=why):
                await hall.open(Start(language=odd))
        assert not list(tmp_path.iterdir())
        desk.asked.clear()
        heard = await said_in(hall, "zh-CN")
        asked = len(desk.asked)
        await said_in(hall, "zh_TW")
        assert len(desk.asked) == 2 * asked - 1  # the language was asked for once
        assert {str(inputs["language"][0]) for inputs, _ in desk.asked} == {"zh"}
        assert {one.language for one in finals(heard)} == {"zh"}

    async def said_in(hall, language):
        return await said(hall, pcm(talk("one two")), start=Start(language=language))

    asyncio.run(run())


def test_where_nothing_tells_voices_apart_nobody_is_named():
    async def run():
        session = await live(Desk()).open(Start())
        ready = await anext(session.messages())
        await session.close()
        return ready.caps

    caps = asyncio.run(run())
    assert caps["speakers"] == "none" and caps["profile"] == "caption" and caps["model"] == "fake"


def test_a_version_that_no_longer_answers_is_left_for_the_live_one(tmp_path):
    async def run():
        desk, asked = Desk(), []

        def submit(request):
            asked.append(request.version)
            return desk.submit(request)

        versions = ["1"]
        settings = SpeechSettings(recogniser="fake")

        def hall():
            wiring = Wiring(submit=submit, model="fake", vad=LoudVad(), clock=FakeClock(), numbers=Numbers(Meter()))
            return Live(settings, wiring, lambda: versions, 9, tmp_path)

        session = await hall().open(Start())
        versions[:] = ["2", "1"]  # the first stays where it began
        reader = asyncio.create_task(read_all(session, []))
        await session.hear(pcm(talk("one two")))
        while not asked:
            await asyncio.sleep(0)
        assert set(asked) == {"1"}
        await session.close()
        await reader
        versions[:] = ["2"]
        again = await hall().open(Start(resume_token=session.token))
        asked.clear()
        reader = asyncio.create_task(read_all(again, []))
        await again.hear(pcm(talk("one two")))
        again.finish()
        await reader
        await again.close()
        assert set(asked) == {"2"}

    asyncio.run(run())


def _put(repository, script):
    """A version of the model "fake" that says a script."""
    streaming = script.kind == "streaming"
    manifest = Manifest(
        format="scripted",
        file="script.json",
        inputs=tensors.STREAMING if streaming else tensors.WINDOWED,
        outputs=tensors.STREAMING_OUTPUTS if streaming else tensors.WINDOWED_OUTPUTS,
        **({"sessions": Sessions(slots=8)} if streaming else {"batching": tensors.batching()}),
    )
    repository.put("fake", manifest, {"script.json": msgspec.json.encode(script)})


@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
def test_through_a_real_engine_every_session_says_what_was_spoken(tmp_path, script):
    streaming = script.kind == "streaming"
    _put(Repository(tmp_path / "models"), script)
    texts = [TALK, TALK[:1], ("nine eight", "ten")]

    async def run():
        meter, clock = Meter(), SystemClock()
        engine = Engine(Repository(tmp_path / "models"), clock, meter)
        await engine.start()
        try:
            wiring = Wiring(
                submit=engine.submit,
                model="fake",
                vad=LoudVad(),
                clock=clock,
                numbers=Numbers(meter),
                streaming=streaming,
            )
            hall = Live(SpeechSettings(recogniser="fake"), wiring, lambda: ["1"], 9, tmp_path / "run")
            found = await asyncio.gather(
                *(said(hall, pcm(talk(*text)), (3200 + 7 * n,)) for n, text in enumerate(texts))
            )
            return [[one.text for one in finals(heard)] for heard in found], meter.sum(
                "millstream_speech_segments_total"
            )
        finally:
            await engine.stop()

    found, count = asyncio.run(run())
    assert found == [list(text) for text in texts]
    assert count == sum(map(len, texts))


def test_what_sessions_do_is_counted():
    async def run():
        meter, desk = Meter(), Desk()
        hall = live(desk, numbers=Numbers(meter))
        heard = await said(hall, pcm(talk(*TALK, gap_s=3.0)))
        return heard, meter, desk

    heard, meter, desk = asyncio.run(run())
    seconds = sum(len(one) for one in [talk(*TALK, gap_s=3.0)]) / 16_000
    assert meter.sum("millstream_speech_audio_seconds_total") == pytest.approx(seconds, abs=0.04)
    around = len(TALK) * (frames(300) + frames(400)) * FRAME / 16_000  # before the speech and behind it
    spoken = sum(one.end - one.start for one in heard if isinstance(one, Segment) and one.state == "final") + around
    assert meter.sum("millstream_speech_heard_seconds_total") == pytest.approx(spoken)
    assert meter.sum("millstream_speech_segments_total") == len(TALK)
    assert meter.sum("millstream_speech_words_total") == sum(len(text.split()) for text in TALK)
    assert meter.sum("millstream_speech_steps_total") == len(desk.asked), "the last of each is its final text"
    assert meter.sum("millstream_speech_first_token_seconds") == len(TALK)
    assert meter.sum("millstream_speech_sessions") == 0
    assert any(isinstance(one, Metrics) for one in heard)
    shown = [one for one in heard if isinstance(one, Segment)]
    assert np.mean([one.lat_ms for one in shown]) == 0  # on a clock that stands still


def test_a_profile_over_its_budget_is_counted():
    async def run():
        clock, meter = FakeClock(), Meter()
        settings = {"profiles": {"caption": ProfileSaid(first_token_ms_max=100)}}
        hall = live(Desk(), clock=clock, numbers=Numbers(meter), **settings)
        session = await hall.open(Start())
        reader = asyncio.create_task(read_all(session, []))
        data = pcm(talk("one two three four five"))
        for at in range(0, len(data), 3200):
            clock.advance(0.1)
            await session.hear(data[at : at + 3200])
            for _ in range(9):
                await asyncio.sleep(0)
        session.finish()
        await reader
        await session.close()
        return meter.sum("millstream_speech_first_token_late_total")

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
def test_another_version_that_is_promoted_costs_no_session_a_word(tmp_path, script):
    repository = Repository(tmp_path / "models")
    for _ in range(2):
        _put(repository, script)

    async def run():
        clock = SystemClock()
        engine = Engine(Repository(tmp_path / "models"), clock, Meter())
        await engine.start()
        try:
            wiring = Wiring(
                submit=engine.submit, model="fake", vad=LoudVad(), clock=clock, numbers=Numbers(Meter()),
                streaming=script.kind == "streaming",
            )  # fmt: skip
            hall = Live(SpeechSettings(recogniser="fake"), wiring, lambda: engine.describe("fake").versions, 9)
            session, heard = await hall.open(Start()), []
            reader = asyncio.create_task(read_all(session, heard))
            data = pcm(talk(*TALK))
            await session.hear(data[: len(data) // 2])
            while not finals(heard):
                await asyncio.sleep(0.01)
            before = engine.describe("fake").versions
            repository.change_policy(
                "fake",
                lambda policy: msgspec.structs.replace(policy, live="1" if "2" in before else "2"),
                "me",
                "better",
            )
            while engine.describe("fake").versions == before:
                await asyncio.sleep(0.01)
            await session.hear(data[len(data) // 2 :])
            session.finish()
            await reader
            await session.close()
            return heard
        finally:
            await engine.stop()

    heard = asyncio.run(run())
    assert [one.text for one in finals(heard)] == list(TALK)
    assert not [one for one in heard if isinstance(one, Trouble)]
