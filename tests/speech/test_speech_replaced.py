"""A session that is gone on with where another model hears now, or tells voices: after a new config and a restart."""

import asyncio

import pytest
from speech_house import STREAM, Desk, finals, live, pcm, read_all, talk
from test_resume import speaking, voices

from millstream import errors
from millstream.spoken import Start

TALK = ["one two three four", "seven"]
LOW = "one two one two one two one two"


async def part(hall, data, upto=None, heard=None, **start):
    """One connection of a client: from where the session stands, or at last; what was told, and the session."""
    session, heard = await hall.open(Start(**start)), []
    reader = asyncio.create_task(read_all(session, heard))
    async with asyncio.timeout(30):
        while not heard:
            await asyncio.sleep(0)
        await session.hear(data[heard[0].audio_ms * 32 : upto])
        if upto is None:
            session.finish()
            await reader
        else:
            while not finals(heard):
                await asyncio.sleep(0.001)
        await session.close()
        await reader
    return heard, session


class Named(Desk):
    """Knows which model and version it was asked for, and in which language."""

    def __init__(self, *script, **more):
        super().__init__(*script, **more)
        self.names = set()

    def submit(self, request):
        self.names.add((request.model, request.version, str(request.inputs.get("language", [""])[0])))
        return super().submit(request)


def no_german(inputs, priority):
    return errors.BadInput("it knows: en") if inputs["language"][0] == "de" else None


@pytest.mark.parametrize("desk", [Named(), Named(STREAM)], ids=["windowed", "streaming"])
def test_a_session_goes_on_with_the_recogniser_of_now(tmp_path, desk, caplog):
    data, half = pcm(talk(*TALK)), len(pcm(talk(TALK[0])))

    async def run():
        before = live(Desk(), tmp_path, recogniser="older")
        before._versions = lambda: ["7"]
        heard, session = await part(before, data, half)
        return heard + (await part(live(desk, tmp_path), data, resume_token=session.token, seq=heard[-1].seq))[0]

    heard = asyncio.run(run())
    assert [one.text for one in finals(heard)] == TALK
    assert {name[:2] for name in desk.names} == {("fake", "1")}
    ready = [one for one in heard if hasattr(one, "caps")]
    assert [(one.caps["model"], one.caps["version"]) for one in ready] == [("older", "7"), ("fake", "1")]
    assert "goes on with fake, as older hears here no more" in caplog.text


def test_a_language_that_the_recogniser_of_now_does_not_know_is_found_out_anew(tmp_path):
    desk, data, half = Named(fails=no_german), pcm(talk(*TALK)), len(pcm(talk(TALK[0])))

    async def run():
        before = live(Desk(), tmp_path, recogniser="older")
        heard, session = await part(before, data, half, language="de")
        return heard + (await part(live(desk, tmp_path), data, resume_token=session.token, seq=heard[-1].seq))[0]

    assert [one.text for one in finals(asyncio.run(run()))] == TALK


@pytest.mark.parametrize("now", ["a/1", "b/1"])
def test_voices_are_compared_with_those_of_the_same_model_alone(tmp_path, now, caplog):
    """With another model nobody is recognised, and no id is given to another voice."""
    data, half = pcm(talk(LOW, LOW)), len(pcm(talk(LOW)))
    more = {"embed": voices, "speakers": speaking}

    async def run():
        heard, session = await part(live(Desk(), tmp_path, voice_model="a/1", **more), data, half)
        assert finals(heard)[0].speaker.id == "S1"
        again = live(Desk(), tmp_path, voice_model=now, **more)
        return (await part(again, data, resume_token=session.token, seq=heard[-1].seq))[0]

    last = finals(asyncio.run(run()))[-1]
    assert last.text == LOW and last.speaker.id == {"a/1": "S1", "b/1": "S2"}[now]
    assert ("goes on without its voices: b/1 is not a/1" in caplog.text) == (now == "b/1")
