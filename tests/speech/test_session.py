"""A session's laws, over a scripted recogniser: what is told depends on the audio alone; nothing is lost or undone."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_house import (
    RATE,
    SCRIPT,
    STREAM,
    WORDS,
    Desk,
    cuts,
    finals,
    fold,
    live,
    pcm,
    read_all,
    said,
    talk,
    ticking,
)

from millstream import errors
from millstream.clock import FakeClock
from millstream.flows.speech.wiring import OpenGate
from millstream.flows.speech.words import Gate
from millstream.spoken import Ack, Edit, Edited, End, Ready, Segment, Start, Trouble, Vad, Word, written

TALK = ("one two three four five six stop.", "seven", "hello world again more zero one two three four five")
SOUND = talk(*TALK)
DATA = pcm(SOUND)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def hear(data=DATA, sizes=(3200,), script=SCRIPT, start=None, **more):
    async def whole():
        return await said(live(Desk(script), **more), data, sizes, start)

    return run(whole())


def told(heard):
    """What must not depend on how audio arrived: finals with all times, and what was stable, by segment and end."""
    last = [(one.id, one.start, one.end, one.words, one.speaker) for one in finals(heard)]
    stable = [(one.id, one.end, one.words[: one.stable]) for one in heard if isinstance(one, Segment)]
    return last, stable


@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
def test_the_words_are_those_that_were_spoken_once_each(script):
    heard = hear(script=script)
    assert [one.text for one in finals(heard)] == list(TALK)
    assert [one.id for one in finals(heard)] == ["1", "2", "3"]
    assert isinstance(heard[0], Ready) and isinstance(heard[-1], End)
    assert heard[-1].audio_ms == len(SOUND) * 1000 // RATE
    times = [at for one in finals(heard) for word in one.words for at in (word.start, word.end)]
    assert times == sorted(times)
    numbers = [one.seq for one in heard[1:]]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
@pytest.mark.parametrize("chunk_ms", [10, 37, 100, 320, 1000, 20_000])
def test_the_size_of_messages_changes_nothing(script, chunk_ms):
    once = told(hear(sizes=(640,), script=script))
    assert told(hear(sizes=(chunk_ms * 32,), script=script)) == once


def test_bytes_one_by_one_change_nothing():
    data = pcm(talk("one", lead_s=0.1, gap_s=0.7))
    assert told(hear(data, sizes=(1,))) == told(hear(data))


@given(st.lists(st.integers(101, 9000), min_size=1, max_size=30))
@settings(max_examples=15, deadline=None)
def test_no_cut_of_the_audio_changes_anything(sizes):
    assert told(hear(sizes=tuple(sizes))) == ONCE


ONCE = told(hear(sizes=(640,)))


def test_long_speech_is_cut_and_no_word_is_lost_or_doubled():
    sentence = " ".join(WORDS[n % 11] for n in range(45))
    for script in (SCRIPT, STREAM):
        heard = hear(pcm(talk(sentence)), script=script, profile="assistant")  # segments of 15 s, of 20 s of speech
        assert len(finals(heard)) > 1
        assert " ".join(one.text for one in finals(heard)) == sentence


def test_a_final_whose_prefix_is_too_long_for_the_recogniser_has_its_last_words():
    """As of 28 s in a script that takes several tokens a letter."""
    sentence = " ".join(WORDS[n % 11] for n in range(50))

    def fails(inputs, priority):
        long = len(str(inputs["prefix"][0]).split()) > 24
        return errors.BadInput("a prefix of 201 tokens: send at most 200") if long else None

    async def whole():
        return await said(live(Desk(fails=fails), profile="meeting"), pcm(talk(sentence)))

    heard = run(whole())
    assert [one.text for one in finals(heard)] == [sentence]
    assert not [one for one in heard if isinstance(one, Trouble)]


@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
def test_a_final_begins_with_every_word_that_was_stable(script):
    heard, stable = hear(script=script, profile="assistant"), {}
    for one in heard:
        if isinstance(one, Segment):
            before = stable.get(one.id, [])
            assert [word.text for word in one.words[: len(before)]] == before
            assert one.stable >= len(before)
            stable[one.id] = [word.text for word in one.words[: one.stable]]
    assert any(one.stable for one in heard if isinstance(one, Segment) and one.state != "final")


class Flighty:
    """A windowed recogniser that changes its mind about every word, and of the prefix too."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.desk = Desk()

    def submit(self, request):
        return asyncio.ensure_future(self.answer(request))

    async def answer(self, request):
        from millstream.models.speech.heard import read, told

        output = await self.desk.answer(request)
        heard = read(output.outputs["heard"][0])
        for word in heard.words:
            if self.random.random() < 0.3:
                word.text = str(self.random.choice(WORDS))
        if self.random.random() < 0.3:
            del heard.words[self.random.integers(0, len(heard.words) + 1) :]
        output.outputs["heard"][0] = told(heard)
        return output

    slots = None


@pytest.mark.parametrize("seed", range(8))
def test_a_recogniser_that_changes_its_mind_takes_back_no_stable_word(seed):
    async def whole():
        return await said(live(Flighty(seed), profile="assistant"), DATA)

    stable = {}
    for one in run(whole()):
        if isinstance(one, Segment):
            before = stable.get(one.id, [])
            assert [word.text for word in one.words[: len(before)]] == before
            stable[one.id] = [word.text for word in one.words[: one.stable]]


def test_sessions_side_by_side_say_what_each_says_alone():
    others = [pcm(talk(text, lead_s=0.2 + 0.17 * n)) for n, text in enumerate(("nine eight seven", "four", "ten ten"))]

    async def together():
        hall = live(Desk())
        return await asyncio.gather(said(hall, DATA, (701,)), *(said(hall, one, (333,)) for one in others))

    mine, *rest = run(together())
    assert told(mine) == ONCE
    for one, data in zip(rest, others, strict=True):
        assert told(one) == told(hear(data))


def test_a_final_is_told_once_and_nothing_of_its_segment_after_it():
    final = set()
    for one in hear(profile="assistant"):
        if isinstance(one, Segment):
            assert one.id not in final
            final |= {one.id} if one.state == "final" else set()
    assert final == {"1", "2", "3"}


def test_speech_begins_and_ends_around_its_words():
    heard = [one for one in hear() if isinstance(one, Vad) or getattr(one, "state", "") == "final"]
    assert [getattr(one, "state", "") for one in heard] == ["start", "final", "end"] * 3
    for begin, final, end in zip(heard[::3], heard[1::3], heard[2::3], strict=True):
        assert (begin.t, end.t) == (final.start, final.end)


def test_in_real_time_the_final_comes_within_the_hangover_and_its_own_time():
    """On a clock of its own: audio at its pace, 20 ms a message, and 150 ms for every call of the recogniser."""

    async def whole():
        clock = FakeClock()
        hall = live(Desk(clock=clock, cost_s=0.15), clock=clock)
        session, heard = await hall.open(Start()), []

        async def read():
            heard.extend([(clock.monotonic(), one) async for one in session.messages()])

        async with ticking(clock):
            reader = asyncio.create_task(read())
            began = clock.monotonic()
            for n, piece in enumerate(cuts(DATA, (640,))):
                await clock.sleep(began + 0.02 * (n + 1) - clock.monotonic())
                await session.hear(piece)
            session.finish()
            await reader
        await session.close()
        return began, heard

    began, heard = run(whole())
    ends = [at - began - one.end for at, one in heard if getattr(one, "state", "") == "final"]
    assert len(ends) == 3 and max(ends) < 0.512 + 0.4
    assert all(0 <= one.lat_ms < 1000 for _, one in heard if isinstance(one, Segment))
    firsts = {}
    for at, one in heard:
        if isinstance(one, Segment):
            firsts.setdefault(one.id, at - began - one.start)
    assert max(firsts.values()) < 1.3


def test_words_wait_for_the_final_before_them_also_when_that_is_slow():
    async def whole():
        clock = FakeClock()
        desk = Desk(clock=clock)
        slow = desk.answer

        async def answer(request):
            if request.priority:
                await clock.sleep(5.0)
            return await slow(request)

        desk.answer = answer
        async with ticking(clock):
            return await said(live(desk, clock=clock, language="en"), DATA)

    heard = run(whole())
    order = [one.id for one in heard if isinstance(one, Segment)]
    assert order == sorted(order)
    assert [one.text for one in finals(heard)] == list(TALK)


def test_a_step_that_fails_is_a_hypothesis_missed():
    calls = []

    def fails(inputs, priority):
        calls.append(priority)
        return errors.Late("too late") if priority == 0 and len(calls) % 2 else None

    async def whole():
        return await said(live(Desk(fails=fails)), DATA)

    assert [one.text for one in finals(run(whole()))] == list(TALK)


def test_a_streaming_recogniser_whose_answer_is_lost_hears_the_segment_anew():
    async def whole():
        desk, count = Desk(STREAM), []

        def lost(inputs):
            count.append(1)
            return errors.Late("too late") if len(count) in (2, 5) else None

        desk.lost = lost
        heard = await said(live(desk), DATA)
        return heard, desk

    heard, desk = run(whole())
    assert [one.text for one in finals(heard)] == list(TALK)
    assert desk.left == set(desk.turns)  # its place in the engine is given back


def test_a_final_that_fails_once_is_asked_for_again_and_twice_is_told_as_far_as_it_was_stable():
    def failing(times):
        left = [times]

        def fails(inputs, priority):
            if priority and left[0]:
                left[0] -= 1
                return errors.Failed("the model is gone")
            return None

        async def whole():
            return await said(live(Desk(fails=fails)), DATA)

        return run(whole())

    assert [one.text for one in finals(failing(1))] == list(TALK)
    heard = failing(3)  # what is heard in the pause, the final text, and that once more
    first, *rest = [one.text for one in finals(heard)]
    stable = max((one.words[: one.stable] for one in heard if isinstance(one, Segment) and one.id == "1"), key=len)
    assert first == written(stable) == "one two" and rest == list(TALK[1:])
    (trouble,) = [one for one in heard if isinstance(one, Trouble)]
    assert (trouble.code, trouble.fatal) == ("final", False)
    assert "the model is gone" in trouble.error


def test_the_language_is_what_is_heard_first_and_then_stays():
    def asked(*sentences):
        async def whole():
            desk = Desk()
            await said(live(desk), pcm(talk(*sentences)))
            return [(str(inputs["language"][0]), priority) for inputs, priority in desk.asked]

        return run(whole())

    assert asked("one", "two", "three") == [("", 1), ("en", 1), ("en", 1)]  # the first final decides
    languages = [language for language, _ in asked(TALK[0] + " one two three four")]
    assert languages == [""] * 4 + ["en"] * 2  # or what is heard in its first three seconds


def test_silence_costs_no_recognition_and_tells_nothing():
    async def whole():
        desk = Desk()
        heard = await said(live(desk), bytes(20 * RATE))
        return desk, [one for one in heard if not isinstance(one, Ready | End)]

    desk, heard = run(whole())
    assert desk.asked == [] and heard == []


def test_words_on_silence_are_not_told():
    class Dreaming(Desk):
        async def answer(self, request):
            from millstream.models.speech.heard import Heard, HeardWord, told

            output = await super().answer(request)
            dream = Heard([HeardWord("Thanks", 0.1, 0.4, 0.2), HeardWord("watching", 0.4, 0.8, 0.2)], "en", 0.9)
            output.outputs["heard"][0] = told(dream)
            return output

    async def whole():
        hum = np.zeros(3 * RATE, "f4")
        hum[RATE : RATE + 8000] = 0.05 * np.random.default_rng(1).normal(size=8000)
        return await said(live(Dreaming()), pcm(hum))

    assert finals(run(whole())) == []


def test_an_answer_that_is_none_is_told_and_the_session_goes_on():
    class Babbling(Desk):
        async def answer(self, request):
            output = await super().answer(request)
            if len(self.asked) < 8:
                output.outputs["heard"][0] = b'{"words": 7}'
            return output

    async def whole():
        return await said(live(Babbling()), DATA)

    heard = run(whole())
    assert [one.text for one in finals(heard)][-1] == TALK[-1]
    told = [one for one in heard if isinstance(one, Trouble)]
    assert told and all(one.code == "final" and "docs/models.md" in one.error and not one.fatal for one in told)


def test_under_load_hypotheses_come_half_as_often_then_not_at_all_and_finals_always():
    def steps(load):
        async def whole():
            desk = Desk()
            session_hall = live(desk)
            session_hall._wiring = __import__("dataclasses").replace(session_hall._wiring, load=lambda: load)
            heard = await said(session_hall, DATA)
            return [one.text for one in finals(heard)], sum(priority == 0 for _, priority in desk.asked)

        return run(whole())

    (text, all_steps), (half_text, half), (none_text, none) = steps(0), steps(1), steps(2)
    assert text == half_text == none_text == list(TALK)
    assert none == 0 < half < all_steps


def test_a_reader_that_is_slow_misses_partials_and_nothing_else():
    async def whole():
        session = await live(Desk(), profile="assistant").open(Start())
        for piece in cuts(DATA, (3200,)):
            await session.hear(piece)
        session.finish()
        await asyncio.wait_for(session.ended.wait(), 30)
        heard = []
        await read_all(session, heard)
        await session.close()
        return heard

    heard = run(whole())
    assert told(heard)[0] == told(hear(profile="assistant"))[0]
    assert not any(one.state != "final" for one in heard if isinstance(one, Segment))


def test_a_client_that_is_too_fast_waits_and_one_that_never_reads_stops_the_session():
    async def whole():
        gate = asyncio.Event()

        class Held(Desk):
            async def answer(self, request):
                await gate.wait()
                return await super().answer(request)

        session = await live(Held(), behind_s_max=2.0).open(Start())
        sender = asyncio.create_task(feed(session, DATA))
        for _ in range(50):
            await asyncio.sleep(0)
        waits = session._waiting
        assert not sender.done() and waits <= (2.0 + 0.1) * RATE
        gate.set()
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        await sender
        session.finish()
        await reader
        await session.close()
        return heard

    assert [one.text for one in finals(run(whole()))] == list(TALK)


def test_messages_of_a_byte_wait_together():
    async def whole():
        session = await live(Desk()).open(Start())
        for byte in pcm(SOUND[: RATE // 4]):
            await session.hear(bytes([byte]))
        waiting = len(session._inbox), session._waiting
        await session.close()
        return waiting

    messages, samples = run(whole())
    assert messages <= RATE // 4 // 320 + 1 and samples == RATE // 4


async def feed(session, data, size=3200):
    for piece in cuts(data, (size,)):
        await session.hear(piece)


def test_what_nobody_reads_is_bounded():
    """Speech and silence in turns, for more segments than messages may wait."""

    async def whole():
        session = await live(Desk(), behind_s_max=5.0).open(Start())
        piece = pcm(talk("one", lead_s=0.0, gap_s=0.7))
        sender = asyncio.create_task(feed(session, piece * 400, 32_000))
        for _ in range(4000):
            await asyncio.sleep(0)
        waiting = len(session._outbox._waiting)
        stuck = not sender.done()
        sender.cancel()
        await session.close()
        return stuck, waiting

    stuck, waiting = run(whole())
    assert stuck and waiting < 300


def test_a_session_that_hears_nothing_for_too_long_is_ended():
    async def whole():
        clock = FakeClock()
        session = await live(Desk(), clock=clock, silence_s_max=30.0).open(Start())
        await session.hear(DATA)
        heard = []
        async with ticking(clock, 0.5):
            await asyncio.wait_for(read_all(session, heard), 30)
        await session.close()
        return heard, clock.monotonic()

    heard, at = run(whole())
    assert [one.text for one in finals(heard)] == list(TALK)
    assert any(isinstance(one, Trouble) and one.code == "silent" for one in heard)
    assert isinstance(heard[-1], End) and 30 <= at < 60


def test_bad_audio_is_refused_and_the_session_goes_on():
    async def whole():
        session = await live(Desk()).open(Start(form="float32"))
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        sound = SOUND.astype("<f4").tobytes()
        await session.hear(sound[:80_001])
        with pytest.raises(errors.BadInput):
            await session.hear(b"\0\0\0" + np.array([np.nan, 1], "<f4").tobytes())
        with pytest.raises(errors.TooLarge):
            await session.hear(bytes(10_000_000))
        await session.hear(sound[80_001:])
        session.finish()
        await reader
        with pytest.raises(errors.Conflict):
            await session.hear(b"\0\0")
        await session.close()
        return heard

    assert [one.text for one in finals(run(whole()))] == list(TALK)


def test_an_edit_is_a_message_of_its_own_and_the_text_that_was_heard_stays():
    async def whole():
        session = await live(Desk()).open(Start())
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        await session.hear(DATA)
        while not finals(heard):
            await asyncio.sleep(0)
        await session.say(Edit(segment="1", text="One, two, three."), "ann")
        with pytest.raises(errors.NotFound):
            await session.say(Edit(segment="77", text="x"))
        with pytest.raises(errors.BadInput):
            await session.say(Edit(segment="1"))
        with pytest.raises(errors.TooLarge):
            await session.say(Edit(segment="1", text="x" * 100_000))
        with pytest.raises(errors.BadInput):
            await session.say(Start())
        session.ack(10**9)  # what was never told is not acknowledged by it
        await session.say(Ack(1))
        session.finish()
        await reader
        await session.close()
        return heard

    heard = run(whole())
    line = fold(heard).lines["1"]
    assert (line.text, [word.text for word in line.words]) == ("One, two, three.", TALK[0].split())
    (edited,) = [one for one in heard if type(one).__name__ == "Edited"]
    assert edited.by == "ann" and edited.rev > finals(heard)[0].rev


class Masking:
    """A gate that lets no "seven" through and holds back the last word of a partial."""

    def partial(self, words, stable, onset):
        kept = words[:-1]
        return self.masked(kept), min(stable, len(kept))

    def final(self, words, onset, end):
        return self.masked(words), [(word.start, word.end) for word in words if word.text == "seven"]

    def masked(self, words):
        return [Word(text="[N]", start=w.start, end=w.end) if w.text == "seven" else w for w in words]

    def edit(self, text):
        return text.replace("seven", "[N]")

    name = edit

    def save(self):
        return {}

    def restore(self, saved):
        pass


def test_all_words_pass_the_gate_and_who_looks_on_is_told_what_must_not_be_kept():
    looks = []

    async def whole():
        return await said(live(Desk(), gate=Masking, look=looks.append), DATA)

    heard = run(whole())
    assert "seven" not in " ".join(one.text for one in heard if isinstance(one, Segment))
    assert [one.text for one in finals(heard)][1] == "[N]"
    assert [len(look.spans) for look in looks] == [0, 1, 0]
    assert looks[1].heard.words[0].text == "seven"
    begin, end = looks[1].spans[0]
    at = [int((second - looks[1].first_s) * RATE) for second in (begin, end)]
    loud = np.abs(looks[1].audio()) > 0.01
    assert loud[at[0] + 200 : at[1] - 200].mean() > 0.9 and loud[: at[0] - 200].mean() < 0.1


@pytest.mark.parametrize("script", [SCRIPT, STREAM])
def test_the_gate_is_told_where_the_speech_of_a_segment_is_and_not_where_its_words_are(script):
    onsets, ends = {}, []

    class Asked(OpenGate):
        def partial(self, words, stable, onset):
            onsets.setdefault(len(ends), set()).add(onset)
            return super().partial(words, stable, onset)

        def final(self, words, onset, end):
            onsets.setdefault(len(ends), set()).add(onset)
            ends.append(end)
            return super().final(words, onset, end)

    async def whole():
        return await said(live(Desk(script), gate=Asked), DATA)

    segments = finals(run(whole()))
    assert [onsets[n] for n in range(3)] == [{one.start} for one in segments], "one for all of its partials"
    assert ends == [one.end for one in segments]


def test_a_name_that_a_person_gives_passes_the_gate_too():
    async def whole():
        session = await live(Desk(), gate=Masking).open(Start())
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        await session.hear(DATA)
        while not finals(heard):
            await asyncio.sleep(0)
        await session.say(Edit(segment="1", speaker="call seven"))
        session.finish()
        await reader
        await session.close()
        return heard

    heard = run(whole())
    assert fold(heard).lines["1"].speaker.name == "call [N]"
    assert not any("seven" in str(told) for told in heard)


def test_a_name_may_end_in_a_number_and_is_no_number():
    async def whole():
        session = await live(Desk(), gate=Gate).open(Start())
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        await session.hear(DATA)
        while not finals(heard):
            await asyncio.sleep(0)
        for name in ("room 3000", "415 555 0123"):
            await session.say(Edit(segment="1", speaker=name))
        session.finish()
        await reader
        await session.close()
        return [told.speaker.name for told in heard if isinstance(told, Edited)]

    assert run(whole()) == ["room 3000", "[PHONE]"]


def test_who_looks_on_and_fails_ends_nothing():
    def look(settling):
        raise RuntimeError("boom")

    async def whole():
        return await said(live(Desk(), look=look), DATA)

    assert len(finals(run(whole()))) == 3


def test_a_part_that_fails_ends_its_session_in_words():
    class Broken(Masking):
        def final(self, words, onset, end):
            raise RuntimeError("boom")

    async def whole():
        session = await live(Desk(), gate=Broken).open(Start())
        await session.hear(DATA)
        heard = []
        await asyncio.wait_for(read_all(session, heard), 30)
        await session.close()
        return heard

    last = run(whole())[-1]
    assert isinstance(last, Trouble) and last.fatal and "boom" not in last.error
