"""What a client of live speech keeps, so that a session goes on after a lost connection: audio, and what was heard.

Rules of the room:
- Nothing here waits or sends: times and connections are `speech.py`'s.
- Audio is addressed by the milliseconds of the session that go before it: a position is a whole sample frame, the one
  that `audio_ms * rate // 1000` frames go before, or the first packet of Opus that begins there or later.
- What is kept is bounded. What had to go, and is asked for again, comes back as silence: times stay right.
- Words that are not final when a connection ends are the server's to tell again.
"""

from __future__ import annotations

from collections import deque

from millstream import errors
from millstream.spoken import (
    Ack,
    Correction,
    Edit,
    Edited,
    Form,
    Kept,
    Ready,
    Segment,
    SpeakerTold,
    Start,
    Told,
    Transcript,
    Trouble,
)

OPUS_RATE = 48_000
MARGIN_MS = 5000
"""Audio before the end of the last final segment that a server may ask for again: the silence before the next one, and
what it holds back."""
PIECE_BYTES = 1 << 15
OWN = ("final", "silent")
"""Codes of what a session says of itself, and that it goes on: see `spoken.Trouble`."""
WIDTHS: dict[Form, int] = {"pcm16": 2, "float32": 4}
_SILENCE = bytes(PIECE_BYTES)


class Tape:
    """Audio as it was given. `bytes_max`: kept at most, of what was sent already; `lost_ms`: what had to go so far, and
    was asked for."""

    def __init__(self, form: Form, rate: int, channels: int, bytes_max: int) -> None:
        self.form, self._most = form, bytes_max
        self._rate = OPUS_RATE if form == "opus" else rate
        self._frame = 1 if form == "opus" else channels * WIDTHS[form]
        # Pieces and where they begin: in bytes, or in samples of Opus. Together they are the audio without a gap.
        self._sent: deque[tuple[int, bytes | bytearray]] = deque()
        self._unsent: deque[tuple[int, bytes | bytearray]] = deque()
        self._kept = 0  # bytes of `_sent`
        self._end = 0
        self.unsent = 0  # bytes that wait to be sent
        self.lost_ms = 0

    @property
    def audio_ms(self) -> int:
        """How much was recorded in all."""
        return self._ms(self._end)

    def put(self, data: bytes) -> None:
        """Record: any number of bytes of samples, or one packet. BadInput: it is no packet."""
        size = packet_samples(data) if self.form == "opus" else 0
        for at in range(0, len(data), PIECE_BYTES):
            piece = data if self.form == "opus" else data[at : at + PIECE_BYTES]
            self._unsent.append((self._end, piece))
            self._end += size or len(piece)
            self.unsent += len(piece)
            if self.form == "opus":
                return

    def take(self) -> bytes:
        """What is to be sent next, a message of it; b"": nothing now."""
        if not self._unsent:
            return b""
        begin, piece = self._unsent.popleft()
        self.unsent -= len(piece)
        self._keep(begin, piece)
        return bytes(piece)

    def confirm(self, audio_ms: int) -> None:
        """Nothing before this will be asked for."""
        at = self._at(audio_ms)
        while self._sent and self._past(self._sent[0]) <= at:
            self._kept -= len(self._sent.popleft()[1])

    def rewind(self, audio_ms: int) -> None:
        """Send from here. Late: it is not there any more, and its place cannot be filled."""
        at = self._at(audio_ms)
        if at > self._end:
            raise errors.Error(f"the server has {audio_ms} ms of audio, and {self.audio_ms} ms were sent")
        while self._sent and self._past(self._sent[-1]) > at:
            begin, piece = self._sent.pop()
            self._kept -= len(piece)
            if begin < at:
                self._keep(begin, piece[: at - begin])
                begin, piece = at, piece[at - begin :]
            self._unsent.appendleft((begin, piece))
            self.unsent += len(piece)
        while self._unsent and self._past(self._unsent[0]) <= at:
            self.take()
        begins = self._unsent[0][0] if self._unsent else self._end
        if self.form == "opus" and not self._sent and self._ms(begins) > audio_ms:
            raise errors.Late(
                f"audio from {audio_ms} ms on is asked for, and kept from {self._ms(begins)} ms on: keep more of it"
            )
        if begins < at:
            begin, piece = self._unsent.popleft()
            self.unsent -= at - begin
            self._keep(begin, piece[: at - begin])
            self._unsent.appendleft((at, piece[at - begin :]))
        elif begins > at:
            self._fill(at, begins)

    def _fill(self, at: int, begins: int) -> None:
        """Silence in place of samples that are gone."""
        self.lost_ms += self._ms(begins) - self._ms(at)
        self.unsent += begins - at
        while begins > at:
            piece = _SILENCE[: begins - at]
            begins -= len(piece)
            self._unsent.appendleft((begins, piece))

    def _keep(self, begin: int, piece: bytes | bytearray) -> None:
        """Behind what was sent before. Small pieces of samples become large ones."""
        last = self._sent[-1][1] if self._sent else None
        if self.form != "opus" and isinstance(last, bytearray) and len(last) + len(piece) <= PIECE_BYTES:
            last += piece
        else:
            self._sent.append((begin, piece if self.form == "opus" else bytearray(piece)))
        self._kept += len(piece)
        while self._kept > self._most:
            self._kept -= len(self._sent.popleft()[1])

    def _past(self, piece: tuple[int, bytes | bytearray]) -> int:
        """Where a piece ends."""
        return piece[0] + (packet_samples(piece[1]) if self.form == "opus" else len(piece[1]))

    def _at(self, audio_ms: int) -> int:
        if self.form != "opus":
            return audio_ms * self._rate // 1000 * self._frame
        begins = (begin for pieces in (self._sent, self._unsent) for begin, _ in pieces)
        return next((begin for begin in begins if self._ms(begin) >= audio_ms), self._end)

    def _ms(self, at: int) -> int:
        return at // self._frame * 1000 // self._rate


def packet_samples(packet: bytes | bytearray) -> int:
    """How long a packet of Opus is, in samples at 48 kHz (RFC 6716, 3.1). BadInput: it is none."""
    if not packet:
        raise errors.BadInput("an empty packet of Opus: send packets whole, one a message")
    kind, count = packet[0] >> 3, packet[0] & 3
    if kind < 12:
        samples = (480, 960, 1920, 2880)[kind & 3]
    elif kind < 16:
        samples = (480, 960)[kind & 1]
    else:
        samples = (120, 240, 480, 960)[kind & 3]
    if count == 3:
        if len(packet) < 2:
            raise errors.BadInput("a packet of Opus that does not say how many frames it has: send packets whole")
        return samples * (packet[1] & 63)
    return samples * (2 if count else 1)


class Book:
    """What was heard, over all connections. `transcript`: the fold of it."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self.transcript = Transcript()
        self.token = ""
        self.session = ""
        self._edits: list[Edit] = []

    def start(self) -> Start:
        """What to say first on a new connection."""
        said = self._start
        if not self.token:
            return said
        return Start(
            form=said.form,
            rate=said.rate,
            channels=said.channels,
            profile=said.profile,
            language=said.language,
            speakers=said.speakers,
            resume_token=self.token,
            seq=self.transcript.seq,
        )

    def ready(self, told: Ready) -> tuple[Edit, ...]:
        """The session is open, or open again; edits to say once more. What was not final is forgotten, and numbers that
        a server gave and knows no more, as it was killed, will be given again."""
        self.token, self.session = told.resume_token, told.session
        self.transcript.seq = min(self.transcript.seq, told.seq - 1)
        lines = self.transcript.lines
        for ident in [ident for ident, line in lines.items() if line.rev and line.state != "final"]:
            del lines[ident]
        return tuple(self._edits)

    def edit(self, edit: Edit) -> None:
        """A person's edit: said until it is heard back."""
        self._edits.append(edit)

    def hear(self, told: Told) -> bool:
        """Take a message in; whether it says anything that was not known."""
        before = self._known(told)
        self.transcript.hear(told)
        if isinstance(told, Edited) and (mine := next((one for one in self._edits if _is_heard(one, told)), None)):
            self._edits.remove(mine)
        return before is None or self._known(told) != before

    def refused(self, told: Trouble) -> None:
        """An edit was refused: none is said again. What a session says of itself refuses none."""
        if told.code not in OWN:
            self._edits.clear()

    def ack(self, told: Told) -> Ack | None:
        """What to acknowledge once this is taken in."""
        return Ack(seq=told.seq) if isinstance(told, Kept) else None

    def _known(self, told: Told) -> object:
        """What is held of what a message is about; None of what is not kept."""
        held = self.transcript
        if isinstance(told, Segment | Correction | Edited):
            line = held.lines.get(told.id)
            return (line.rev, line.speaker_rev, line.edited_rev) if line is not None else ()
        if isinstance(told, SpeakerTold):
            return held.names.get(told.id), held.into.get(told.id)
        return None


def _is_heard(edit: Edit, told: Edited) -> bool:
    """Whether it may tell of this edit: of the oldest it does. The text need not be the same, as it passed a gate."""
    return (
        edit.segment == told.id
        and (edit.text is None) == (told.text is None)
        and (edit.speaker is None) == (told.speaker is None)
    )  # fmt: skip


def finals(told: Told) -> int | None:
    """The end of a segment that is final now, in ms."""
    return int(told.end * 1000) if isinstance(told, Segment) and told.state == "final" else None
