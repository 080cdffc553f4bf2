"""Whatever ends a session's process or connection, whenever: who goes on with it ends with the same transcript."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as trying
from hypothesis import strategies as st
from msgspec.structs import asdict, replace
from speech_house import DIGITS, RATE, SCRIPT, STREAM, Desk, cuts, finals, fold, live, pcm, read_all, said, talk

from millstream import errors
from millstream.clock import FakeClock
from millstream.flows.speech.measured import Numbers
from millstream.flows.speech.settings import ProfileSaid
from millstream.flows.speech.speakers import Speakers
from millstream.flows.speech.store import Held, Store
from millstream.meter import Meter
from millstream.models.speech import heard as hearing
from millstream.models.speech.turns import Spoken
from millstream.spoken import Ack, Correction, Edit, Edited, End, Ready, Segment, Start, Transcript

TALK = ("one two three four", "seven", "hello world again more zero one two three")
SOUND = talk(*TALK)


class Killed(BaseException):
    """The process is gone."""


@contextlib.contextmanager
def killing(monkeypatch, at, before):
    """Each Held of this test dies at its write number `at` (counted over all), before or after the bytes are there."""
    count, real = [0], Held.write

    def write(self, state, now, durable=True):
        count[0] += 1
        if count[0] == at and before:
            raise Killed
        real(self, state, now, durable)
        if count[0] == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Held, "write", write)
        yield count


class Client:
    """What a client does: keeps its audio and its transcript, and connects again until the end. `loses(n)`: how many of
    the last messages of connection n were sent and never arrived; `acks`: whether it acknowledges, which nobody does of
    what never arrived."""

    def __init__(self, data, bytes_ms=32, loses=lambda n: 0, acks=True, **start):
        self.data, self.bytes_ms, self.loses, self.acks, self.start = data, bytes_ms, loses, acks, start
        self.held, self.token, self.arrived, self.sent, self.begun = Transcript(), "", [], [], []

    async def connect(self, hall, number, upto=None):
        """One connection: to the end, or until the server is gone; `upto`: after so many bytes the client goes."""
        start = Start(resume_token=self.token, seq=self.held.seq, **self.start)
        session = await hall.open(start)
        heard, acked = [], 0
        reader = asyncio.create_task(read_all(session, heard))
        try:
            while not heard:
                await asyncio.sleep(0)
            ready = heard[0]
            self.token = ready.resume_token
            self.begun.append(ready.audio_ms)
            at = ready.audio_ms * self.bytes_ms
            for piece in cuts(self.data[at:upto], (3200,)):
                await session.hear(piece)
                if self.acks and len(heard) > 3:
                    acked = len(heard) // 2
                    await session.say(Ack(seq=heard[acked].seq))
                await asyncio.sleep(0)
            if upto is None:
                session.finish()
                while not session.ended.is_set() and not died(session):
                    await asyncio.sleep(0.001)
        except errors.Error:
            pass
        killed = died(session)
        await session.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader, 5)
        last = killed or upto is not None
        lost = min(self.loses(number), len(heard) - 1 - acked) if last else 0
        self.sent += heard
        for told in heard[: len(heard) - lost]:
            self.held.hear(told)
            self.arrived.append(told)
        return session


def died(session):
    return any(task.done() and not task.cancelled() and task.exception() for task in session._tasks)


def lines(held):
    return [asdict(line) | {"rev": 0, "speaker_rev": 0} for line in held.shown()]


def whole(script=SCRIPT, data=None, settings=None, **start):
    async def once():
        return await said(live(Desk(script), **(settings or {})), data or pcm(SOUND), start=Start(**start))

    return lines(fold(asyncio.run(once())))


def meanings(messages):
    """Finals by id: one and the same however often told."""
    found = {}
    for told in finals(messages):
        found.setdefault(told.id, []).append((told.text, told.start, told.end, told.words))
    return found


def crashing(folder, monkeypatch, before, desk, data, every=1, **settings):
    """A client of processes that die at their writes, each number of a write in turn; what became of each."""
    for at in range(1, 40, every):

        async def run(folder, at=at):
            client = Client(data, loses=lambda n: n + 2)
            with killing(monkeypatch, at, before) as count:
                for number in range(4):
                    hall = live(desk(number), folder, **settings)  # a process of its own
                    try:
                        await client.connect(hall, number)
                    except errors.NotFound:
                        client.token = ""  # nothing was written yet: begin anew
                    except Killed:
                        continue
                    if client.held.ended:
                        break
            return client, count[0]

        client, writes = asyncio.run(run(folder / str(at)))
        assert client.held.ended
        yield client
        if writes < at:
            assert at > 4
            return


HARD = talk(" ".join(DIGITS[n % 11] for n in range(14)), "one two", "three", gap_s=0.45)
"""Speech that is cut for its length, and words right behind the silence that ends a segment."""
SHORT = {"profiles": {"caption": ProfileSaid(segment_s_max=3.0, hangover_ms=384)}}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("script", [SCRIPT, STREAM], ids=["windowed", "streaming"])
@pytest.mark.parametrize(("sound", "settings"), [(SOUND, {}), (HARD, SHORT)], ids=["pauses", "hard"])
def test_a_crash_at_any_write_changes_no_word(tmp_path, monkeypatch, script, before, sound, settings):
    alone = whole(script, pcm(sound), settings)
    for client in crashing(
        tmp_path, monkeypatch, before, lambda _: Desk(script), pcm(sound), 1 + bool(settings), **settings
    ):
        assert lines(client.held) == alone
        assert all(len({repr(one) for one in told}) == 1 for told in meanings(client.sent).values())


class Fickle(Desk):
    """A recogniser that writes every word otherwise than that of another process."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    async def answer(self, request):
        output = await super().answer(request)
        heard = hearing.read(output.outputs["heard"][0])
        for word in heard.words:
            word.text = word.text.rstrip("0123456789") + str(self.number)
        output.outputs["heard"][0] = hearing.told(heard)
        return output


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_what_was_told_is_never_told_otherwise_and_no_number_means_two_things(tmp_path, monkeypatch, before):
    for client in crashing(tmp_path, monkeypatch, before, Fickle, pcm(SOUND)):
        assert all(len({text for text, *_ in one}) == 1 for one in meanings(client.sent).values())
        numbers = {}
        for message in client.sent:
            if not isinstance(message, Ready):
                numbers.setdefault(message.seq, set()).add(repr(message))
        assert all(len(one) == 1 for one in numbers.values())


@given(
    st.lists(st.integers(0, len(SOUND) * 2 + 9), max_size=4).map(sorted),
    st.lists(st.integers(0, 12), min_size=5, max_size=5),
    st.booleans(),
    st.integers(0, 1000),
)
@example([0, 0, 145408, 304001], [0, 0, 0, 6, 0], True, 0)  # it loses what it might have acknowledged
@trying(max_examples=15, deadline=None)
def test_a_client_that_is_cut_off_anywhere_ends_with_what_the_server_holds(tmp_path_factory, ends, lost, acks, seed):
    folder = tmp_path_factory.mktemp("speech")

    async def run():
        client = Client(pcm(SOUND), loses=lambda n: lost[n], acks=acks)
        for number, upto in enumerate([*ends, None]):
            await client.connect(live(Desk(), folder), number, upto)
        return client

    client = asyncio.run(run())
    shutil.rmtree(folder)
    assert client.held.ended and lines(client.held) == ALONE
    order = random.Random(seed)
    shuffled = [*client.arrived, *order.sample(client.arrived, len(client.arrived) // 3)]
    order.shuffle(shuffled)
    assert lines(fold(shuffled)) == ALONE  # late, twice and in any order


ALONE = whole()


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_audio_of_another_rate_is_gone_on_with_to_the_sample(tmp_path, rate):
    at = np.arange(len(SOUND) * rate // RATE) * RATE / rate
    data = pcm(np.interp(at, np.arange(len(SOUND)), SOUND))
    alone = whole(data=data, rate=rate)
    assert len(alone) == 3

    async def run():
        client = Client(Frames(data, rate), 1, loses=lambda n: 1, rate=rate)
        for number, upto in enumerate([len(data) // 3, len(data) * 2 // 3, None]):
            await client.connect(live(Desk(), tmp_path), number, upto)
        return client

    client = asyncio.run(run())
    assert lines(client.held) == alone
    assert len(set(client.begun)) > 1


class Frames:
    """Bytes whose slices begin at the frame of a millisecond."""

    def __init__(self, data, rate):
        self.data, self.rate = data, rate

    def __getitem__(self, where):
        return self.data[where.start * self.rate // 1000 * 2 : where.stop]


async def voices(sounds):
    """A made-up voice: the shape of the spectrum."""
    found = []
    for sound in sounds:
        bands = np.abs(np.fft.rfft(sound))[: 160 * 25].reshape(-1, 25).mean(axis=1)
        found.append(bands / max(np.linalg.norm(bands), 1e-9))
    return np.array(found, "f4")


async def turns(sounds):
    """Made-up turns: in a window of low tones two speak for its first half second."""
    found = []
    for sound in sounds:
        low = np.argmax(np.abs(np.fft.rfft(sound))) * RATE / len(sound) < 700
        found.append(Spoken([(0, 8000)] if low else [], [((8000, len(sound)), 0)]))
    return found


def speaking(profile, saved):
    return Speakers.restored(saved) if saved else Speakers(profile.speakers, profile.decide_s, profile.horizon_s)


@pytest.mark.parametrize("policy", ["correctable", "delayed"])
def test_speakers_and_their_corrections_are_gone_on_with(tmp_path, policy):
    low, high = "one two one two one two one two", "more again more again more again more again"
    data = pcm(talk(low, high, low, high))
    more = {"embed": voices, "listen": turns, "speakers": speaking}

    async def alone():
        return await said(live(Desk(), **more), data, start=Start(speakers=policy))

    async def cut():
        client = Client(data, loses=lambda n: 2, speakers=policy)
        for number, upto in enumerate([len(data) // 4, len(data) * 3 // 4, None]):
            await client.connect(live(Desk(), tmp_path, **more), number, upto)
        return client

    heard, client = asyncio.run(alone()), asyncio.run(cut())
    expected = [(line["id"], line["speaker"]) for line in lines(fold(heard))]
    assert len({speaker.id for _, speaker in expected}) == len({speaker.overlap for _, speaker in expected}) == 2
    assert [(line["id"], line["speaker"]) for line in lines(client.held)] == expected
    if policy == "delayed":
        assert any(isinstance(one, Correction) for one in heard)


def test_turns_that_are_not_heard_cost_a_flag_and_no_word(caplog):
    data = pcm(talk("one two one two one two one two"))

    async def failing(sounds):
        raise RuntimeError("no more memory")

    def heard(listen):
        hall = live(Desk(), embed=voices, listen=listen, speakers=speaking)
        return finals(asyncio.run(said(hall, data, start=Start(speakers="correctable"))))

    (flagged,), (plain,) = heard(turns), heard(failing)
    assert flagged.speaker == replace(plain.speaker, overlap=True) and flagged.text == plain.text != ""
    assert "segment 1: who speaks was not heard in all of it: RuntimeError('no more memory')" in caplog.text


def test_who_is_named_by_a_person_is_still_one_of_two():
    async def run():
        hall = live(Desk(), embed=voices, listen=turns, speakers=speaking)
        session, heard = await hall.open(Start(speakers="correctable")), []
        reader = asyncio.create_task(read_all(session, heard))
        await session.hear(pcm(talk("one two one two one two one two")))
        while not finals(heard):
            await asyncio.sleep(0.001)
        await session.say(Edit(segment="1", speaker="Ann"), "ann")
        await session.close()
        await reader
        return heard

    (edited,) = [one for one in asyncio.run(run()) if isinstance(one, Edited)]
    assert edited.speaker.name == "Ann" and edited.speaker.overlap


def test_an_edit_is_kept_before_it_is_told(tmp_path):
    async def run():
        client = Client(pcm(SOUND))
        hall = live(Desk(), tmp_path)
        session = await hall.open(Start())
        heard = []
        reader = asyncio.create_task(read_all(session, heard))
        await session.hear(client.data)
        while not finals(heard):
            await asyncio.sleep(0.001)
        await session.say(Edit(segment="1", text="ONE TWO"), "ann")
        await session.close()
        await reader
        client.token = heard[0].resume_token
        for told in heard:
            if isinstance(told, Ready | Segment):
                client.held.hear(told)
        client.held.seq = finals(heard)[0].seq  # the edit never arrived
        await client.connect(live(Desk(), tmp_path), 0)
        return client

    line = asyncio.run(run()).held.lines["1"]
    assert (line.text, " ".join(word.text for word in line.words)) == ("ONE TWO", TALK[0])


def test_a_session_that_ended_is_told_to_its_end_once_more_and_is_gone_once_acknowledged(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        heard = await said(hall, pcm(SOUND))
        token, last = heard[0].resume_token, heard[-1].seq
        again = await hall.open(Start(resume_token=token, seq=0))
        told = []
        await read_all(again, told)
        assert [one.text for one in finals(told)] == list(TALK) and isinstance(told[-1], End)
        with pytest.raises(errors.Conflict):
            await again.hear(b"\0\0")
        again.ack(last)
        await again.close()
        with pytest.raises(errors.NotFound):
            await hall.open(Start(resume_token=token))

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_with_its_token_and_its_kind_of_audio_goes_on_with_a_session(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        session = await hall.open(Start(), owner="ann")
        token = session.token
        with pytest.raises(errors.NotFound):
            await hall.open(Start(resume_token="nonsense/../.."))
        with pytest.raises(errors.NotFound):
            await hall.open(Start(resume_token=token[:-1] + ("a" if token[-1] != "a" else "b")))
        other = live(Desk(), tmp_path)
        with pytest.raises(errors.Busy):
            await other.open(Start(resume_token=token), owner="ann")
        await session.close()
        with pytest.raises(errors.NotFound):
            await other.open(Start(resume_token=token), owner="bob")
        with pytest.raises(errors.BadInput, match="16000 Hz"):
            await other.open(Start(resume_token=token, rate=8000), owner="ann")
        again = await other.open(Start(resume_token=token), owner="ann")
        assert again.id == session.id
        third = await other.open(Start(resume_token=token), owner="ann")  # the same process: the older one gives way
        assert again.ended.is_set() and not third.ended.is_set()
        await other.close()

    asyncio.run(run())


def test_whoever_may_not_go_on_with_a_session_does_not_disturb_it(tmp_path):
    async def run():
        hall, other = live(Desk(), tmp_path), live(Desk(), tmp_path)
        session = await hall.open(Start(), owner="ann")
        for house in (hall, other):
            with pytest.raises(errors.NotFound):
                await house.open(Start(resume_token=session.token), owner="bob")
            with pytest.raises(errors.BadInput):
                await house.open(Start(resume_token=session.token, channels=2), owner="ann")
            with pytest.raises(errors.NotFound):
                await house.open(Start(resume_token=session.id + "." + 24 * "é"), owner="ann")
        assert not session.ended.is_set() and not list(tmp_path.glob("*.wanted"))
        await hall.close()

    asyncio.run(run())


def test_a_dead_connection_gives_a_session_up_to_who_asks_for_it(tmp_path):
    async def run():
        clock = FakeClock()
        hall, other = live(Desk(), tmp_path, clock=clock), live(Desk(), tmp_path)
        session = await hall.open(Start())
        with pytest.raises(errors.Busy):
            await other.open(Start(resume_token=session.token))
        for _ in range(200):
            await asyncio.sleep(0)
            clock.advance(0.1)
        await asyncio.wait_for(session.ended.wait(), 30)
        again = await other.open(Start(resume_token=session.token))
        assert again.id == session.id
        await hall.close()
        await other.close()

    asyncio.run(run())


def test_what_is_asked_for_too_late_is_refused_not_half_told(tmp_path):
    async def run():
        numbers = Numbers(Meter())
        hall = live(Desk(), tmp_path, numbers=numbers)
        session = await hall.open(Start())
        session._outbox.lost = 40
        await session._teller.begin()
        await session.close()
        with pytest.raises(errors.Conflict, match="up to 40"):
            await hall.open(Start(resume_token=session.token, seq=7))
        assert numbers.sessions.value == 0
        again = await hall.open(Start(resume_token=session.token, seq=40))
        await again.close()

    asyncio.run(run())


def test_files_that_nobody_goes_on_with_are_swept_and_those_in_use_are_not(tmp_path):
    async def run():
        clock = FakeClock()
        hall = live(Desk(), tmp_path, clock=clock, resume_s=600)
        kept, left = await hall.open(Start()), await hall.open(Start())
        await left.close()
        clock.advance(700)
        assert Store(tmp_path).sweep(clock.now() - 600) == 1
        assert {path.stem for path in tmp_path.iterdir()} == {kept.id}
        await hall.close()

    asyncio.run(run())


def test_the_time_to_go_on_begins_with_the_end_of_the_connection(tmp_path):
    async def run():
        clock = FakeClock()
        hall = live(Desk(), tmp_path, clock=clock, resume_s=600)
        session = await hall.open(Start())
        clock.advance(700)  # it says nothing: nothing is written
        await session.close()
        hall.sweep()
        again = await hall.open(Start(resume_token=session.token))
        await again.close()
        clock.advance(700)
        hall.sweep()
        assert not list(tmp_path.iterdir())

    asyncio.run(run())


def test_a_file_that_is_damaged_is_no_session_and_is_readable_by_its_owner_alone(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        session = await hall.open(Start())
        await session.close()
        path = tmp_path / f"{session.id}.session"
        assert path.stat().st_mode & 0o077 == 0
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(errors.NotFound, match="damaged"):
            await hall.open(Start(resume_token=session.token))

    asyncio.run(run())


def test_a_session_is_not_let_go_of_while_it_is_being_written(tmp_path, monkeypatch):
    began, go_on, real = threading.Event(), threading.Event(), Held.write

    def write(self, state, now, durable=True):
        if durable:
            began.set()
            assert go_on.wait(10)
        real(self, state, now, durable)

    async def run():
        hall, other = live(Desk(), tmp_path), live(Desk(), tmp_path)
        session = await hall.open(Start())
        await session.hear(pcm(SOUND))
        await asyncio.to_thread(began.wait, 10)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0.05)
        with pytest.raises(errors.Busy):
            await other.open(Start(resume_token=session.token))
        go_on.set()
        await closing
        again = await other.open(Start(resume_token=session.token))
        heard = []
        reader = asyncio.create_task(read_all(again, heard))
        while not finals(heard):
            await asyncio.sleep(0.005)
        await other.close()
        await reader
        return heard

    with monkeypatch.context() as patch:
        patch.setattr(Held, "write", write)
        heard = asyncio.run(run())
    assert [one.text for one in finals(heard)] == [TALK[0]]  # what was being written is told to who goes on


def test_a_session_whose_closing_is_cancelled_is_let_go_of(tmp_path, monkeypatch):
    """As a connection that the server ends is lost a second time when the client hangs up."""
    began, go_on, real = threading.Event(), threading.Event(), Held.write

    def write(self, state, now, durable=True):
        if durable:
            began.set()
            assert go_on.wait(10)
        real(self, state, now, durable)

    async def run():
        hall, other = live(Desk(), tmp_path), live(Desk(), tmp_path)
        session = await hall.open(Start())
        await session.hear(pcm(SOUND))
        await asyncio.to_thread(began.wait, 10)
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        await asyncio.wait([closing])
        go_on.set()
        await asyncio.wait_for(session.ended.wait(), 30)
        again = await other.open(Start(resume_token=session.token))
        await again.close()

    monkeypatch.setattr(Held, "write", write)
    asyncio.run(run())


def test_a_full_disk_costs_the_place_to_go_on_from_not_the_text(tmp_path, monkeypatch, caplog):
    def write(self, state, now, durable=True):
        raise errors.Full("no room on the disk")

    async def run():
        hall = live(Desk(), tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Held, "write", write)
            return await said(hall, pcm(SOUND))

    assert [one.text for one in finals(asyncio.run(run()))] == list(TALK)
    assert sum("no room on the disk" in record.message for record in caplog.records) == 1


def test_what_a_long_silence_needs_to_be_sent_again_is_short(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        session = await hall.open(Start())
        await session.hear(pcm(talk("one two", gap_s=30.0)))
        while session._inbox or session._walker.jobs.qsize():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)
        await session.close()
        again = await hall.open(Start(resume_token=session.token))
        told = []
        reader = asyncio.create_task(read_all(again, told))
        while not told:
            await asyncio.sleep(0.005)
        await again.close()
        await reader
        return told[0].audio_ms

    assert asyncio.run(run()) > 31_000 - 5_500


def test_a_process_that_is_killed_leaves_its_sessions_to_others(tmp_path):
    """A real process, really killed."""
    code = (
        "import asyncio, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from speech_house import *\n"
        "from test_resume import SOUND\n"
        "async def run():\n"
        "    session = await live(Desk(), Path(sys.argv[2])).open(Start())\n"
        "    heard = []\n"
        "    asyncio.create_task(read_all(session, heard))\n"
        "    await session.hear(pcm(SOUND)[:len(SOUND)])\n"
        "    while not finals(heard): await asyncio.sleep(0.01)\n"
        "    print(session.token, heard[-1].seq, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    process = subprocess.Popen([sys.executable, "-c", code, here, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        token, seq = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
        process.wait()

        async def run():
            client = Client(pcm(SOUND))
            client.token = token
            await client.connect(live(Desk(), tmp_path), 0)
            return client

        client = asyncio.run(run())
        assert lines(client.held) == ALONE  # it never acknowledged: all is told again
        assert finals(client.arrived)[0].seq <= int(seq) < client.held.seq
    finally:
        process.kill()


def test_a_session_that_ended_keeps_no_sound(tmp_path):
    async def run():
        hall = live(Desk(), tmp_path)
        heard = await said(hall, pcm(SOUND))
        return Store(tmp_path).look(heard[0].resume_token, ""), heard[-1]

    state, end = asyncio.run(run())
    assert isinstance(end, End) and state.ended and state.place.samples
    assert (state.place.intake, state.place.level, state.place.hearing) == ({}, {}, {})
