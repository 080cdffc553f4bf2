"""The routes of the page Speech, without a browser: what is refused and how, and what becomes of a session that nobody
listens to any more."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from millstream import errors
from millstream.app.console.hearing import Hearing
from millstream.app.installation import Settings
from millstream.console import listening
from millstream.spoken import End, Line, Segment, Speaker, Word


class Session:
    """An open session that says a word of each piece of audio, and ends when it is told to."""

    def __init__(self):
        self.heard, self.edits, self.left = [], [], ""
        self._said = asyncio.Queue()

    async def send(self, audio):
        self.heard.append(audio)
        word = Word(text=f"piece{len(self.heard)}", start=0, end=1)
        count = len(self.heard)
        self._said.put_nowait(Segment(seq=count, id="1", rev=count, state="partial", start=0, end=1, words=[word]))

    async def edit(self, segment, text=None, speaker=None):
        self.edits.append((segment, text, speaker))

    async def finish(self):
        self._said.put_nowait(End(seq=99, last_seq=98, audio_ms=1000))

    async def __aiter__(self):
        while True:
            told = await self._said.get()
            yield told
            if isinstance(told, End):
                return


class Views(Hearing):
    """`refuses`: what opening a session raises. `sessions`: with the key and the start of each."""

    def __init__(self, refuses=None):
        super().__init__(SimpleNamespace(settings=Settings(), folder=None, clock=None))
        self.refuses, self.sessions = refuses, []

    @contextlib.asynccontextmanager
    async def listen(self, start, key):
        if self.refuses is not None:
            raise self.refuses
        session = Session()
        self.sessions.append((session, start, key))
        try:
            yield session
            session.left = "ended"
        finally:
            session.left = session.left or "cut off"


def client(views, key="ms_1"):
    return TestClient(Starlette(routes=listening.routes(views, lambda scope: key)))


def refused(socket):
    told = json.loads(socket.receive_text())
    assert told["type"] == "error"
    with pytest.raises(WebSocketDisconnect) as end:
        socket.receive_text()
    return told["code"], told["error"], end.value.code


def test_a_conversation_goes_through_with_the_visitors_key():
    views = Views()
    with client(views).websocket_connect("/speech/live") as socket:
        socket.send_text('{"type":"start","rate":48000,"profile":"court"}')
        assert json.loads(socket.receive_text())["type"] == "ready"
        socket.send_bytes(b"1234")
        assert json.loads(socket.receive_text())["words"][0]["text"] == "piece1"
        socket.send_text('{"type":"edit","segment":"1","speaker":"Anna"}')
        socket.send_text('{"type":"finish"}')
        assert json.loads(socket.receive_text())["type"] == "end"
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_text()
    assert end.value.code == 1000
    ((session, start, key),) = views.sessions
    assert (start.rate, start.profile, key) == (48_000, "court", "ms_1")
    assert (session.heard, session.edits, session.left) == ([b"1234"], [("1", None, "Anna")], "ended")


@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("no JSON", "the first message is start"),
        ('{"type":"finish"}', "the first message is start"),
        ('{"type":"start","rate":1}', "the first message is start"),
        ('{"type":"start","form":"opus"}', "pcm16"),
    ],
)
def test_what_is_no_start_is_refused(first, why):
    views = Views()
    with client(views).websocket_connect("/speech/live") as socket:
        socket.send_text(first)
        code, said, closed = refused(socket)
    assert (code, closed) == ("invalid_argument", 1008) and why in said and not views.sessions


def test_what_is_no_message_ends_the_session():
    views = Views()
    with client(views).websocket_connect("/speech/live") as socket:
        socket.send_text('{"type":"start"}')
        socket.receive_text()
        socket.send_text('{"type":"start"}')
        code, said, _ = refused(socket)
    assert code == "invalid_argument" and "there are edit and finish" in said
    assert views.sessions[0][0].left == "cut off"


def test_a_browser_that_goes_leaves_no_session_behind():
    views = Views()
    app = client(views)
    with app, app.websocket_connect("/speech/live") as socket:
        socket.send_text('{"type":"start"}')
        socket.receive_text()
    assert views.sessions[0][0].left == "cut off"


def test_what_the_service_refuses_is_told(caplog):
    for error, code, closed in (
        (errors.Forbidden("403: no right"), "permission_denied", 1008),
        (errors.Missing.extra("speech", "the client"), "failed_precondition", 1008),
        (RuntimeError("a secret path"), "internal", 1011),
    ):
        with client(Views(error)).websocket_connect("/speech/live") as socket:
            socket.send_text('{"type":"start"}')
            found, said, end = refused(socket)
        assert (end, "secret" in said) == (closed, False), said
        assert code == found or isinstance(error, errors.Missing)


def test_only_so_many_talk_at_once(monkeypatch):
    monkeypatch.setattr(listening, "CONVERSATIONS_MAX", 1)
    app = client(Views())
    with app, app.websocket_connect("/speech/live") as first:
        first.send_text('{"type":"start"}')
        first.receive_text()
        with app.websocket_connect("/speech/live") as second:
            assert "try again later" in refused(second)[1]
    with app, app.websocket_connect("/speech/live") as third:
        third.send_text('{"type":"start"}')
        assert json.loads(third.receive_text())["type"] == "ready", "those that went make room"


def test_a_transcript_is_written_as_a_file(monkeypatch):
    word = Word(text="hello", start=0.5, end=1.0)
    line = Line(id="1", rev=1, state="final", start=0.5, end=1.0, words=[word], speaker=Speaker(id="S1", name="S1"))
    body = msgspec.json.encode(listening.Sheet(lines=[line], who={"1": "Anna"}, name="talk", seconds=2.0))
    app = client(Views())
    assert app.post("/speech/written?form=txt", content=body).text == "Anna: hello\n"
    assert app.post("/speech/written?form=rttm", content=body).text.startswith("SPEAKER talk 1 0.500 0.500")
    assert json.loads(app.post("/speech/written?form=json", content=body).text)["seconds"] == 2.0
    unknown = app.post("/speech/written?form=docx", content=body)
    assert unknown.status_code == 400 and "txt, srt, vtt, json, rttm" in unknown.text
    assert app.post("/speech/written?form=txt", content=b"[]").status_code == 400
    monkeypatch.setattr(listening, "WRITTEN_BYTES_MAX", 10)
    assert app.post("/speech/written?form=txt", content=body).status_code == 413
