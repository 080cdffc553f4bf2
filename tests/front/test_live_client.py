"""The client of live speech: what it holds in the end is what the server holds, whatever happens to its connections."""

from __future__ import annotations

import asyncio
import random
import wave
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from front_house import Served, served_beside
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talk_house import BLOCK, Hearing, texts_of
from tls_house import Files, SecureHouse

from millstream import errors
from millstream.client.speech import Speech, transcribe_live
from millstream.client.tape import PIECE_BYTES, Book, Tape
from millstream.spoken import (
    Correction,
    Edit,
    Edited,
    End,
    Ready,
    Segment,
    Speaker,
    SpeakerTold,
    Start,
    Told,
    Trouble,
    Word,
)
from millstream.types import Principal

AUDIO = random.Random(7).randbytes(BLOCK * 40)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between two connections are short here."""
    monkeypatch.setattr("millstream.client.speech.BACKOFF_FIRST_S", 0.004)


def run(test: Callable[[], Awaitable[None]], limit_s: float = 100) -> None:
    complaints: list[dict[str, object]] = []

    async def bounded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(limit_s):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
    assert not complaints, complaints


def texts(live: Speech) -> list[str]:
    assert all(line.state == "final" for line in live.transcript.shown())
    return [line.text for line in live.transcript.shown()]


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


async def send(live: Speech, audio: bytes = AUDIO, size: int = 640) -> None:
    for at in range(0, len(audio), size):
        await live.send(audio[at : at + size])
    await live.finish()


class Rough:
    """Between a client and its server: a proxy that cuts the connection after so many bytes of either direction, the
    next one after the next number, and that then stays."""

    def __init__(self, port: int, up: list[int], down: list[int]) -> None:
        self._port, self._up, self._down = port, list(up), list(down)
        self.port = 0
        self.cuts = 0

    async def __aenter__(self) -> Rough:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        up, down = (some.pop(0) if some else None for some in (self._up, self._down))
        tasks = [
            asyncio.ensure_future(self._carry(reader, back, up)),
            asyncio.ensure_future(self._carry(there, writer, down)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for one in (writer, back):
            one.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, left: int | None) -> None:
        while data := await source.read(1 << 16):
            if left is not None and len(data) >= left:
                to.write(data[:left])
                await to.drain()
                await asyncio.sleep(0)
                self.cuts += 1
                return
            left = None if left is None else left - len(data)
            to.write(data)
            await to.drain()


def test_a_conversation() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = hearing = Hearing()
            async with Speech(url(house.port), rate=16_000, profile="court") as live:
                sending = asyncio.ensure_future(send(live))
                told = [one async for one in live]
                await sending
            assert texts(live) == texts_of(AUDIO)
            assert isinstance(told[-1], End) and live.transcript.ended
            assert [one.rev for one in told if isinstance(one, Segment) and one.id == "g0"] == [1, 2, 3, 4]
            assert hearing.begun[0][0].profile == "court"
            assert hearing.open[0].acked == told[-1].seq and hearing.closed == 1
            with pytest.raises(errors.BadInput, match="finish was said"):
                await live.send(b"\0\0")

    run(test)


@given(
    up=st.lists(st.integers(200, 60_000), max_size=5),
    down=st.lists(st.integers(100, 20_000), max_size=5),
    size=st.sampled_from([1000, 3200, 50_000]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_session_outlives_its_connections(up: list[int], down: list[int], size: int) -> None:
    """Cut anywhere, in frames, in the handshake, with what was told and not heard: the transcript is the server's."""

    async def test() -> None:
        async with Served() as house:
            house.door.hearing = Hearing()
            async with Rough(house.port, up, down) as rough:
                try:
                    live = Speech(url(rough.port))
                    await live.__aenter__()
                except errors.Busy:
                    return  # the very first connection: who opens it is told
                shown: list[Told] = []

                async def take() -> None:
                    shown.extend([told async for told in live])

                taking = asyncio.ensure_future(take())
                await send(live, size=size)
                await taking
                assert texts(live) == texts_of(AUDIO)
                assert 1 <= live.connections <= 1 + rough.cuts
                finals = [one.id for one in shown if isinstance(one, Segment) and one.state == "final"]
                assert finals == [f"g{n}" for n in range(len(finals))]  # each told once, in order
                await live.__aexit__(None)
            for connection in tuple(house.http.connections):
                connection.abort()

    run(test)


def test_a_server_that_goes_away_and_comes_back_gets_the_rest() -> None:
    async def test() -> None:
        hearing = Hearing()
        async with Served() as house:
            house.door.hearing = hearing
            port = house.port
            live = Speech(url(port))
            await live.__aenter__()
            await live.send(AUDIO[: BLOCK * 9])
            while len(live.transcript.lines) < 3:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)  # nobody is there
        again = Served()
        again.door.hearing = hearing
        again.port = await again.http.start(port=port)
        try:
            await live.send(AUDIO[BLOCK * 9 :])
            await live.finish()
            await live.ended()
            assert texts(live) == texts_of(AUDIO)
            assert live.connections == 2 and live.lost_ms == 0
            await live.__aexit__(None)
        finally:
            await again.__aexit__()

    run(test)


def test_what_is_not_kept_any_more_is_silence() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = hearing = Hearing()
            hearing.deaf = True
            async with Speech(url(house.port), keep_bytes_max=2 * PIECE_BYTES) as live:
                await live.send(AUDIO)
                while hearing.open[0].taken != len(AUDIO):
                    await asyncio.sleep(0.001)
                hearing.deaf = False
                for connection in tuple(house.http.connections):
                    connection.abort()
                await live.finish()
                await live.ended()
            lost = live.lost_ms * 32
            assert 0 < lost < len(AUDIO) and lost >= len(AUDIO) - 2 * PIECE_BYTES
            assert texts(live) == texts_of(bytes(lost) + AUDIO[lost:])

    run(test)


def test_edits_are_said_until_they_are_heard_back() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = hearing = Hearing()
            async with Speech(url(house.port)) as live:
                await live.send(AUDIO[: BLOCK * 4])
                while not live.transcript.lines.get("g0", None) or live.transcript.lines["g0"].state != "final":
                    await asyncio.sleep(0.001)
                hearing.go.clear()
                await live.send(AUDIO[BLOCK * 4 : BLOCK * 5])  # the edit waits behind it, and is lost
                await asyncio.sleep(0.02)
                await live.edit("g0", text="what was meant")
                await asyncio.sleep(0.02)
                for connection in tuple(house.http.connections):
                    connection.abort()
                await asyncio.sleep(0.02)
                hearing.go.set()
                while live.transcript.lines["g0"].edited is None:
                    await asyncio.sleep(0.001)
                assert live.transcript.lines["g0"].text == "what was meant"
                await live.edit("nothing like it", text="x")  # refused, and nothing ends
            assert live.transcript.ended

    run(test)


@pytest.mark.parametrize(
    ("refuse", "kind"),
    [
        (errors.NotFound("no such profile"), errors.NotFound),
        (errors.Overloaded("full", 7.0), errors.Busy),
        (RuntimeError("a secret"), errors.Error),
    ],
)
def test_what_is_refused_is_raised_at_the_beginning(refuse: Exception, kind: type[errors.Error]) -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = hearing = Hearing()
            hearing.refuse = refuse
            with pytest.raises(kind) as raised:
                async with Speech(url(house.port)):
                    pass
            assert "secret" not in str(raised.value)
            if isinstance(refuse, errors.Busy):
                assert isinstance(raised.value, errors.Busy) and raised.value.retry_after_s == 7.0

    run(test)


def test_a_key_is_shown_and_one_that_is_revoked_ends_it() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = hearing = Hearing()
            house.door.keys = {"k": Principal("shop", ("*:speech",))}
            for key, kind in (("", errors.Unauthenticated), ("x", errors.Unauthenticated)):
                with pytest.raises(kind):
                    async with Speech(url(house.port), key):
                        pass
            with pytest.raises(errors.Unauthenticated):
                async with Speech(url(house.port), "k") as live:
                    await live.send(AUDIO[: BLOCK * 4])
                    house.door.keys.clear()
                    async for _ in live:
                        pass
            assert hearing.begun[0][1] == "shop"

    run(test)


def test_nobody_there_is_busy() -> None:
    async def test() -> None:
        async with Served() as house:
            port = house.port
        with pytest.raises(errors.Busy, match="cannot reach"):
            async with Speech(url(port)):
                pass
        with pytest.raises(errors.Misconfigured):
            Speech("ftp://x")

    run(test)


def test_a_server_that_stays_away_ends_it() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = Hearing()
            live = Speech(url(house.port), retry_s=0.2)
            await live.__aenter__()
        with pytest.raises(errors.Busy, match="tried for"):
            await live.ended()
        with pytest.raises(errors.Busy):
            await live.send(b"\0\0")
        await live.__aexit__(ValueError)

    run(test)


def test_who_takes_no_messages_holds_the_server_and_gets_all_finals() -> None:
    async def test() -> None:
        async with Served() as house:
            house.door.hearing = Hearing()
            async with Speech(url(house.port)) as live:
                audio = AUDIO * 10
                await send(live, audio, 32_000)
                await asyncio.sleep(0.2)
                transcript = await live.ended()
            assert [line.text for line in transcript.shown()] == texts_of(audio)

    run(test)


def test_over_tls(tmp_path: Path) -> None:
    async def test() -> None:
        files = Files(tmp_path)
        async with SecureHouse(files) as house:
            house.door.hearing = Hearing()
            async with Speech(f"https://localhost:{house.port}", ca=tmp_path / "ca.pem") as live:
                await send(live)
            assert texts(live) == texts_of(AUDIO)

    run(test)


def test_a_file_is_sent_and_waited_for(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(AUDIO)
    heard: list[Told] = []
    with served_beside() as served:
        served.door.hearing = Hearing()
        transcript = transcribe_live(url(served.port), tmp_path / "a.wav", on_told=heard.append, profile="meeting")
    assert [line.text for line in transcript.shown()] == texts_of(AUDIO)
    assert isinstance(heard[-1], End)
    (tmp_path / "b.wav").write_bytes(b"no wave")
    with pytest.raises(errors.BadInput, match=r"b\.wav: it ends too soon; a WAV"):
        transcribe_live("http://127.0.0.1:1", tmp_path / "b.wav")
    with pytest.raises(errors.NotFound, match=r"c\.wav: there is no such file"):
        transcribe_live("http://127.0.0.1:1", tmp_path / "c.wav")


def test_a_form_that_is_none_is_refused() -> None:
    form: Any = "mp3"
    with pytest.raises(errors.BadInput, match="'mp3': there are pcm16, float32, opus"):
        Speech("http://127.0.0.1:1", form=form)


# -- what is kept ------------------------------------------------------------------------------------------------------


@given(st.data())
def test_the_tape_gives_back_what_was_given_from_any_frame_on(data: st.DataObject) -> None:
    """Against one growing byte string: whatever is put, taken, confirmed and asked for again."""
    channels, form, rate = data.draw(
        st.sampled_from([(1, "pcm16", 16_000), (2, "float32", 44_100), (1, "pcm16", 8000)])
    )
    frame = channels * (2 if form == "pcm16" else 4)
    tape, whole, at, floor = Tape(form, rate, channels, 1 << 30), b"", 0, 0
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["put", "take", "confirm", "rewind"])):
            case "put":
                piece = random.Random(len(whole)).randbytes(data.draw(st.integers(1, 3 * PIECE_BYTES)))
                tape.put(piece)
                whole += piece
            case "take":
                piece = tape.take()
                assert len(piece) <= PIECE_BYTES and whole[at:].startswith(piece) and (piece or at == len(whole))
                at += len(piece)
            case "confirm":
                ms = data.draw(st.integers(0, at // frame * 1000 // rate))
                floor = max(floor, ms)
                tape.confirm(ms)
            case "rewind":
                ms = data.draw(st.integers(floor, max(floor, tape.audio_ms)))
                at = ms * rate // 1000 * frame
                tape.rewind(ms)
        assert tape.unsent == len(whole) - at
    rest = b"".join(iter(tape.take, b""))
    assert rest == whole[at:] and tape.lost_ms == 0


def test_packets_of_opus_are_kept_whole_and_begin_where_they_began() -> None:
    tape = Tape("opus", 16_000, 1, 1 << 20)
    lengths = {0x08: 20, 0x78: 20, 0x98: 20, 0x80: 2.5, 0x18: 60, 0x81: 5.0}  # RFC 6716, table 2: the first byte
    at, begins = 0.0, []
    for first, ms in lengths.items():
        begins.append(int(at))
        tape.put(bytes([first, 1]))
        at += ms
    assert tape.audio_ms == int(at)
    sent = list(iter(tape.take, b""))
    assert [packet[0] for packet in sent] == list(lengths)
    for n, begin in enumerate(begins):
        tape.rewind(begin)
        assert list(iter(tape.take, b"")) == sent[n:]
    tape.confirm(begins[3])
    with pytest.raises(errors.Late, match="keep more"):
        tape.rewind(0)
    with pytest.raises(errors.BadInput):
        tape.put(b"\x03")
    tape.put(b"\x0b\x03")  # three frames of 20 ms
    assert tape.audio_ms == int(at + 60)


def segment(seq: int, ident: str, rev: int, state: Any = "partial", *words: str) -> Segment:
    return Segment(
        seq=seq, id=ident, rev=rev, state=state, start=0, end=1, words=[Word(text=w, start=0, end=1) for w in words]
    )


def test_what_was_not_final_is_forgotten_with_the_connection() -> None:
    book = Book(Start(profile="meeting"))
    assert book.start().resume_token == ""
    book.ready(Ready(session="s", resume_token="t"))
    assert book.hear(segment(1, "a", 1, "final", "x")) and not book.hear(segment(1, "a", 1, "final", "x"))
    assert book.hear(segment(5, "b", 4, "partial", "y"))
    assert (book.start().resume_token, book.start().seq, book.start().profile) == ("t", 5, "meeting")
    book.ready(Ready(session="s", resume_token="t", seq=3))  # killed: numbers from 3 on come again
    assert book.start().seq == 2
    assert book.hear(segment(3, "b", 1, "partial", "z"))
    assert [line.text for line in book.transcript.shown()] == ["x", "z"]


def test_an_edit_that_the_gate_changed_is_not_said_again_over_a_later_one() -> None:
    book = Book(Start())
    book.ready(Ready(session="s", resume_token="t"))
    book.hear(segment(1, "a", 1, "final", "x"))
    for edit in (
        Edit(segment="a", text="call 13812345678"),
        Edit(segment="a", text="call me"),
        Edit(segment="a", speaker="S1"),
    ):
        book.edit(edit)
    book.hear(Edited(seq=2, id="a", rev=2, text="call [PHONE]"))
    book.refused(Trouble(code="final", error="segment b is told as far as it was stable", fatal=False))
    assert [edit.text for edit in book.ready(Ready(session="s", resume_token="t", seq=9))] == ["call me", None]
    book.hear(Edited(seq=10, id="a", rev=3, text="call me"))
    assert [edit.speaker for edit in book.ready(Ready(session="s", resume_token="t", seq=11))] == ["S1"]
    book.hear(Edited(seq=12, id="a", rev=4, speaker=Speaker(id="S1")))
    assert book.ready(Ready(session="s", resume_token="t", seq=13)) == ()
    book.edit(Edit(segment="z", text="nobody's"))
    book.refused(Trouble(code="not_found", error="no final segment 'z'", fatal=False))
    assert book.ready(Ready(session="s", resume_token="t", seq=13)) == ()


def test_a_server_that_fails_at_the_same_place_again_and_again_is_left() -> None:
    class Failing(Hearing):
        """Fails behind the first final text, whoever goes on there, and says so as a session does."""

        async def speech(self, start: Start, principal: Principal) -> Any:
            session: Any = await super().speech(start, principal)
            hear = session.hear

            async def fails(audio: bytes) -> None:
                if session._saved.kept:
                    session.out.put_nowait(Trouble(code="internal", error="it has failed here", retry_s=0.001))
                    await asyncio.Event().wait()
                else:
                    await hear(audio)

            session.hear = fails
            return session

    async def test() -> None:
        async with Served() as house:
            house.door.hearing = Failing()
            live = Speech(url(house.port))
            with pytest.raises(errors.Error, match="it has failed here"):
                async with live:
                    await send(live)
            assert live.connections == 5

    run(test)


def test_what_says_nothing_new_is_told_to_nobody() -> None:
    book = Book(Start())
    who = Speaker(id="S1", name="a")
    for told in (
        segment(1, "a", 1, "final", "x"),
        SpeakerTold(seq=2, op="new", id="S1"),
        SpeakerTold(seq=3, op="rename", id="S1", name="judge"),
        Correction(seq=4, id="a", rev=2, speaker=who),
        Edited(seq=5, id="a", rev=3, text="y"),
    ):
        assert book.hear(told), told
        assert not book.hear(told), told
        ack = book.ack(told)
        assert ack is not None and ack.seq == told.seq
    assert book.ack(Ready(session="s", resume_token="t")) is None
