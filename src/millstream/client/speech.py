"""Live speech from a program: send audio, hear what was said, and notice nothing of lost connections.

    async with Speech("http://127.0.0.1:8000", key="ms_...") as live:
        asyncio.create_task(send_all(live))          # await live.send(samples); live.finish()
        async for told in live:
            print(live.transcript.shown()[-1].text)

Rules of the room:
- A connection that is lost is made again, with growing pauses, for `retry_s`; the session goes on where the server says
  that it stands, from audio that was kept. `transcript` is then what it would have been.
- `send` waits while more than UNSENT_BYTES_MAX are not sent: who plays a file is as fast as the server hears.
- Messages that nobody takes wait, WAITING_MAX at most: then partials are left out, and for the others nothing more is
  read, so that the server holds them.
- What the server refuses for good is raised where messages are taken, as the class of `millstream.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import wave
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import msgspec

from millstream import errors
from millstream.client import BACKOFF_FIRST_S, BACKOFF_MAX_S, tls_context
from millstream.client.tape import MARGIN_MS, Book, Tape, finals
from millstream.clock import Clock, SystemClock
from millstream.spoken import Edit, End, Finish, Form, Move, Ready, Said, Segment, Start, Told, Transcript, Trouble

try:
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import (
        AcceptConnection,
        BytesMessage,
        CloseConnection,
        Event,
        Ping,
        RejectConnection,
        RejectData,
        Request,
        TextMessage,
    )
    from wsproto.utilities import ProtocolError
except ModuleNotFoundError as missing:
    raise errors.Missing.extra("speech", "millstream.client.speech") from missing

PROTOCOL = "millstream.speech.v1"
UNSENT_BYTES_MAX = 1 << 18
WAITING_MAX = 1000
READ_BYTES = 1 << 16
MESSAGE_BYTES_MAX = 16 << 20
SILENT_S = 30.0  # of the server, before it is pinged; as long again, and the connection is given up
_REFUSED_BYTES_MAX = 1 << 14
_FAILURES_MAX = 5  # of the server's own, without a final text between them: the next try would fail as well

_told = msgspec.json.Decoder(Told)
_KINDS = (
    errors.BadInput,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.NotFound,
    errors.Conflict,
    errors.TooLarge,
    errors.Overloaded,
    errors.Busy,
    errors.Late,
    errors.Misconfigured,
    errors.Missing,
)
_BY_STATUS = {one.status: one for one in (*_KINDS[:-2], errors.Missing)}
_BY_CODE = {one.code.lower(): one for one in reversed(_KINDS)}


class _Lost(Exception):
    """The connection is no more; `wait_s`: before another one is tried."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Speech:
    """One live transcription at `url`; `start` as `spoken.Start` has it (form, rate, channels, profile, language,
    speakers, user). `keep_bytes_max`: audio kept for a lost connection; `retry_s`: how long one is tried for.

    `ca`, `certificate`, `private_key`: as of `Client`. Use it in `async with`: leaving it without an error says finish
    and waits for the end. Misconfigured, Unauthenticated, Forbidden, NotFound, Busy: from entering it.
    """

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        form: Form = "pcm16",
        rate: int = 16_000,
        channels: int = 1,
        profile: str = "",
        language: str = "",
        speakers: str = "",
        user: str = "",
        ca: str | Path = "",
        certificate: str | Path = "",
        private_key: str | Path = "",
        timeout_s: float = 10.0,
        retry_s: float = 60.0,
        keep_bytes_max: int = 32 << 20,
        clock: Clock | None = None,
    ) -> None:
        parts = urlsplit(url)
        secure = parts.scheme in ("https", "wss")
        if parts.scheme not in ("http", "ws", "https", "wss") or not parts.hostname:
            raise errors.Misconfigured(f"the URL of a service looks like http://127.0.0.1:8000, got {url!r}")
        if form not in get_args(Form):
            raise errors.BadInput(f"form {form!r}: there are {', '.join(get_args(Form))}")
        self._url, self._host, self._port = url, parts.hostname, parts.port or (443 if secure else 80)
        self._path = parts.path.rstrip("/") + "/v1/speech"
        self._tls = tls_context("https:" if secure else url, ca, certificate, private_key)
        self._headers = [(b"Authorization", f"Bearer {key}".encode())] if key else []
        self._timeout_s, self._retry_s, self._clock = timeout_s, retry_s, clock or SystemClock()
        self._tape = Tape(form, rate, channels, keep_bytes_max)
        self._book = Book(
            Start(
                form=form,
                rate=rate,
                channels=channels,
                profile=profile,
                language=language,
                speakers=speakers,
                user=user,
            )
        )
        self._waiting: deque[Told] = deque()
        self._changed = asyncio.Condition()
        self._finishing = self._finished = self._over = False
        self._error: Exception | None = None
        self._edits: deque[Edit] = deque()
        self._task: asyncio.Task[None] | None = None
        self.connections = 0
        self._failures = 0

    # The program's side.

    @property
    def transcript(self) -> Transcript:
        """What was heard so far."""
        return self._book.transcript

    @property
    def lost_ms(self) -> int:
        """Audio that the server asked for again when it was not kept any more: it heard silence."""
        return self._tape.lost_ms

    async def send(self, audio: bytes) -> None:
        """Audio in the form of `start`: any number of bytes of samples, or one packet of Opus. Waits while the server
        is behind. What ended the session is raised; BadInput: after `finish`."""
        if self._finishing:
            raise errors.BadInput("finish was said already; open another session")
        self._tape.put(audio)
        await self._tell()
        async with self._changed:
            await self._changed.wait_for(lambda: self._over or self._tape.unsent <= UNSENT_BYTES_MAX)
        if self._error is not None:
            raise self._error

    async def finish(self) -> None:
        """No more audio comes. The messages go on up to `end`."""
        self._finishing = True
        await self._tell()

    async def edit(self, segment: str, text: str | None = None, speaker: str | None = None) -> None:
        """What a final segment should read, or who spoke; `edited` says that it is so."""
        said = Edit(segment=segment, text=text, speaker=speaker)
        self._book.edit(said)
        self._edits.append(said)
        await self._tell()

    async def __aiter__(self) -> AsyncIterator[Told]:
        """What is heard, in order, nothing twice; up to `end`. Raises what ended the session before it."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    break
                told = self._waiting.popleft()
                self._changed.notify_all()
            yield told
        if self._error is not None:
            raise self._error

    async def ended(self) -> Transcript:
        """Wait for the end, whether or not anybody takes the messages. Raises what ended the session before it."""
        async for _ in self:
            pass
        return self.transcript

    async def __aenter__(self) -> Speech:
        made = await self._open()
        self._task = asyncio.get_running_loop().create_task(self._run(made))
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and not self._over:
                await self.finish()
                await self.ended()
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # Connections, one after the other.

    async def _run(self, line: _Line) -> None:
        try:
            while True:
                try:
                    await self._speak(line)
                    return
                except _Lost as lost:
                    line = await self._again(lost)
        except errors.Error as error:
            self._error = error
        except Exception as error:
            self._error = errors.Error(f"{self._url}: {type(error).__name__}: {error}")
            raise
        finally:
            self._over = True
            await self._tell()

    async def _again(self, lost: _Lost) -> _Line:
        """Another connection, tried for `retry_s`. Busy: there is none."""
        deadline, pause_s = self._clock.monotonic() + self._retry_s, BACKOFF_FIRST_S
        while True:
            # Spread, or all clients of a server that went come back at once.
            await self._clock.sleep(max(lost.wait_s, pause_s * random.uniform(0.5, 1.0)))
            try:
                return await self._open()
            except (_Lost, errors.Busy, errors.Late) as error:
                if self._clock.monotonic() > deadline:
                    raise errors.Busy(f"{self._url}: {error}; tried for {self._retry_s:g} s") from None
                lost = _Lost(str(error), error.retry_after_s if isinstance(error, errors.Busy) else 0.0)
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _open(self) -> _Line:
        """A connection whose session is open. What the server refuses is raised; Busy, Late: it cannot be reached."""
        try:
            async with asyncio.timeout(self._timeout_s):
                line = await _Line.connect(self._host, self._port, self._path, self._headers, self._tls)
                try:
                    await line.say(self._book.start())
                    ready = await line.hear()
                    if isinstance(ready, Trouble):
                        raise _error(ready)
                    if not isinstance(ready, Ready):
                        raise errors.Error(f"{self._url}: the first message is no ready: {ready}")
                    self._tape.rewind(ready.audio_ms)
                    self._edits = deque(self._book.ready(ready))
                except BaseException:
                    line.close()
                    raise
        except TimeoutError:
            raise errors.Late(f"{self._url}: no session within {self._timeout_s:g} s") from None
        except _Lost as error:
            raise errors.Busy(f"{self._url}: {error}", BACKOFF_FIRST_S) from None
        except OSError as error:
            raise errors.Busy(f"cannot reach {self._url}: {error}", BACKOFF_FIRST_S) from None
        self.connections += 1
        return line

    async def _speak(self, line: _Line) -> None:
        """Both directions of one connection, up to `end`. Raises _Lost, or what the server refuses."""
        sending = asyncio.ensure_future(self._send(line))
        hearing = asyncio.ensure_future(self._hear(line))
        try:
            done, _ = await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if hearing not in done and sending.exception() is not None:
                # The server may have said why before it hung up.
                await asyncio.wait({hearing}, timeout=1.0)
            if hearing.done():
                hearing.result()
            else:
                sending.result()
        finally:
            for one in (sending, hearing):
                one.cancel()
            await asyncio.wait({sending, hearing})
            for one in (sending, hearing):
                if not one.cancelled():
                    one.exception()
            line.close()

    async def _send(self, line: _Line) -> None:
        """Audio and edits as they come, then finish; then nothing more, for ever."""
        self._finished = False
        while True:
            while self._edits:
                await line.say(self._edits.popleft())
            if piece := self._tape.take():
                await line.send(piece)
                await self._tell()
                continue
            if self._finishing and not self._finished:
                self._finished = True
                await line.say(Finish())
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._edits or self._tape.unsent or (self._finishing and not self._finished)
                )

    async def _hear(self, line: _Line) -> None:
        while True:
            told = await line.hear()
            if isinstance(told, Move):
                raise _Lost(told.why)
            if isinstance(told, Trouble) and told.fatal:
                error = _error(told)
                self._failures += told.code == errors.Error.code.lower()
                if isinstance(error, errors.Busy) and self._failures < _FAILURES_MAX:
                    raise _Lost(str(error), error.retry_after_s)
                raise error
            if isinstance(told, Trouble):
                self._book.refused(told)
            if self._book.hear(told):
                await self._offer(told)
            if (end := finals(told)) is not None:
                self._failures = 0
                self._tape.confirm(max(0, end - MARGIN_MS))
            if (ack := self._book.ack(told)) is not None:
                with contextlib.suppress(_Lost):  # a server that has hung up may have said more before that
                    await line.say(ack)
            if isinstance(told, End):
                return

    async def _offer(self, told: Told) -> None:
        async with self._changed:
            if len(self._waiting) >= WAITING_MAX:
                kept = [one for one in self._waiting if not (isinstance(one, Segment) and one.state != "final")]
                self._waiting = deque(kept)
            await self._changed.wait_for(lambda: len(self._waiting) < WAITING_MAX)
            self._waiting.append(told)
            self._changed.notify_all()


class _Line:
    """One WebSocket, after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = WSConnection(ConnectionType.CLIENT)
        self._text: list[str] = []
        self._events: deque[Event] = deque()
        self._pinged = False

    @classmethod
    async def connect(
        cls, host: str, port: int, path: str, headers: list[tuple[bytes, bytes]], tls: ssl.SSLContext | None
    ) -> _Line:
        """Shake hands. OSError, _Lost, or what the server refuses."""
        line = cls(*await asyncio.open_connection(host, port, ssl=tls))
        try:
            name = f"[{host}]" if ":" in host else host
            await line._write(
                Request(host=f"{name}:{port}", target=path, subprotocols=[PROTOCOL], extra_headers=headers)
            )
            answer = await line._event()
            if isinstance(answer, AcceptConnection):
                return line
            if isinstance(answer, RejectConnection):
                raise await line._refusal(answer)
            raise _Lost(f"no handshake: {answer}")
        except BaseException:
            line.close()
            raise

    async def say(self, said: Said) -> None:
        """Send a message. _Lost."""
        await self._write(TextMessage(data=msgspec.json.encode(said).decode()))

    async def send(self, audio: bytes) -> None:
        """Send audio; waits for the socket. _Lost."""
        await self._write(BytesMessage(data=audio))

    async def hear(self) -> Told:
        """The next message; what a later server says and this client does not know is passed over. _Lost."""
        while True:
            event = await self._event()
            if isinstance(event, TextMessage):
                self._text.append(event.data)
                if sum(map(len, self._text)) > MESSAGE_BYTES_MAX:
                    raise errors.TooLarge(f"a message of more than {MESSAGE_BYTES_MAX} bytes from the server")
                if event.message_finished:
                    text, self._text = "".join(self._text), []
                    with contextlib.suppress(msgspec.ValidationError):
                        told: Told = _told.decode(text)
                        return told
            elif isinstance(event, Ping):
                await self._write(event.response())
            elif isinstance(event, CloseConnection):
                raise _Lost(f"the server closed: {event.code} {event.reason or ''}".strip())

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _write(self, event: Event) -> None:
        try:
            self._writer.write(self._frames.send(event))
            await self._writer.drain()
        except (OSError, ProtocolError) as error:
            raise _Lost(str(error) or type(error).__name__) from None

    async def _event(self) -> Event:
        while not self._events:
            try:
                async with asyncio.timeout(SILENT_S):
                    data = await self._reader.read(READ_BYTES)
            except TimeoutError:
                if self._pinged:
                    raise _Lost(f"the server said nothing for {2 * SILENT_S:g} s") from None
                self._pinged = True
                await self._write(Ping())
                continue
            except OSError as error:
                raise _Lost(str(error) or type(error).__name__) from None
            self._pinged = False
            if not data:
                raise _Lost("the connection was lost")
            try:
                self._frames.receive_data(data)
                self._events.extend(self._frames.events())
            except ProtocolError as error:
                raise _Lost(f"no WebSocket: {error}") from None
        return self._events.popleft()

    async def _refusal(self, answer: RejectConnection) -> errors.Error:
        """What the server says in place of a handshake."""
        said = b""
        while answer.has_body and len(said) < _REFUSED_BYTES_MAX:
            part = await self._event()
            if not isinstance(part, RejectData):
                break
            said += part.data
            if part.body_finished:
                break
        try:
            sentence = str(msgspec.json.decode(said)["error"])
        except (msgspec.MsgspecError, TypeError, KeyError):
            sentence = said[:200].decode("utf-8", "replace") or "no word of why; is this the service's own address?"
        fallback = errors.BadInput if 400 <= answer.status_code < 500 else errors.Error
        error = _BY_STATUS.get(answer.status_code, fallback)(f"{answer.status_code}: {sentence}")
        wait = next((value for name, value in answer.headers if name.lower() == b"retry-after"), b"")
        if isinstance(error, errors.Busy) and wait.isdigit():
            error.retry_after_s = float(wait)
        return error


def _error(told: Trouble) -> errors.Error:
    error = _BY_CODE.get(told.code, errors.Error)(told.error)
    if told.retry_s and not isinstance(error, errors.Busy):
        error = errors.Busy(told.error)
    if isinstance(error, errors.Busy):
        error.retry_after_s = told.retry_s or error.retry_after_s
    return error


def transcribe_live(
    url: str, file: str | Path, key: str = "", on_told: Callable[[Told], None] | None = None, **more: Any
) -> Transcript:
    """Send a WAV file of 16 bits as fast as it is heard, and wait for the end; `more` as of `Speech`. Blocks. BadInput:
    another kind of file; NotFound: no such file."""
    try:
        with wave.open(str(file), "rb") as opened:
            if opened.getsampwidth() != 2:
                raise errors.BadInput(f"{file}: {8 * opened.getsampwidth()} bits a sample; make a WAV file of 16 bits")
            rate, channels, audio = opened.getframerate(), opened.getnchannels(), opened.readframes(opened.getnframes())
    except FileNotFoundError:
        raise errors.NotFound(f"{file}: there is no such file") from None
    except (wave.Error, EOFError) as error:
        raise errors.BadInput(f"{file}: {str(error) or 'it ends too soon'}; a WAV file of 16 bits is wanted") from None

    async def run() -> Transcript:
        async with Speech(url, key, form="pcm16", rate=rate, channels=channels, **more) as live:

            async def send() -> None:
                await live.send(audio)
                await live.finish()

            sending = asyncio.ensure_future(send())
            try:
                async for told in live:
                    if on_told is not None:
                        on_told(told)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
            return live.transcript

    return asyncio.run(run())
