"""Live speech as a call of gRPC: `millstream.speech.v1.Speech/Converse`, messages of `spoken.py` in a stream each way.

Rules of the room:
- A message has the fields and names of the WebSocket's; `docs/speech.proto` is the same table for other languages.
- What is left out of `start` is as there: proto3 cannot tell 0 from nothing.
- The end of the client's stream is its `finish`. A call that ends badly says so twice: `error`, and the status.
- A key that was revoked, or may not speak any more, ends the call with the next message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from millstream import errors
from millstream.clock import Clock
from millstream.front.door import Door
from millstream.front.grpc import messages, wire
from millstream.front.grpc.call import Call
from millstream.front.grpc.headers import CODES
from millstream.front.talk import Talk
from millstream.spoken import Ack, Edit, End, Finish, Move, Said, Start, Told, Trouble
from millstream.types import Principal

SPEECH = "millstream.speech.v1"
MESSAGE_BYTES_MAX = 1 << 20
WAITING_BYTES_MAX = 1 << 18
LOOK_S = 0.05  # whether a client that was full has read
_TABLE = """
Said: start Start 1/said, ack Ack 2/said, edit Edit 3/said, finish Finish 4/said, audio bytes 5/said
Start: form string 1, rate int32 2, channels int32 3, profile string 4, language string 5, speakers string 6,
 resume_token string 7, seq int64 8, user string 9
Ack: seq int64 1
Edit: segment string 1, text string 2/_text, speaker string 3/_speaker
Finish:
Told: ready Ready 1/told, vad Vad 2/told, segment Segment 3/told, speaker SpeakerTold 4/told,
 correction Correction 5/told, edited Edited 6/told, metrics Metrics 7/told, error Trouble 8/told, move Move 9/told,
 end End 10/told
Ready: session string 1, resume_token string 2, audio_ms int64 3, seq int64 4, caps Cap% 5
Cap: text string 1/cap, number double 2/cap, flag bool 3/cap
Vad: seq int64 1, state string 2, t double 3
Word: text string 1, start double 2, end double 3, confidence double 4, stability double 5, space bool 6
Speaker: id string 1, name string 2, score double 3, overlap bool 4
Segment: seq int64 1, id string 2, rev int32 3, state string 4, start double 5, end double 6, words Word* 7,
 stable int32 8, speaker Speaker 9, lat_ms int32 10, language string 11
SpeakerTold: seq int64 1, op string 2, id string 3, name string 4, into string 5
Correction: seq int64 1, id string 2, rev int32 3, speaker Speaker 4, reason string 5
Edited: seq int64 1, id string 2, rev int32 3, by string 4, text string 5/_text, speaker Speaker 6
Metrics: seq int64 1, rtf double 2, queue_ms int32 3, first_token_ms int32 4, degraded string 5
Trouble: code string 1, error string 2, fatal bool 3, retry_s double 4
Move: why string 1
End: seq int64 1, last_seq int64 2, audio_ms int64 3
"""
CLASSES = messages.classes_of(**{SPEECH: _TABLE})
_SAID, _TOLD = CLASSES[f"{SPEECH}.Said"], CLASSES[f"{SPEECH}.Told"]
Message = messages.Message


class Converse:
    """One conversation: the `Receiver` of its call, and the `talk.Wire` of its session. `principal`: who asks, asked
    for every message."""

    def __init__(self, door: Door, call: Call, principal: Callable[[Call], Principal], clock: Clock) -> None:
        self._door, self._call, self._principal, self._clock = door, call, principal, clock
        who = principal(call)
        door.listens(who)
        call.streams = True
        self._talk = Talk(door, self, who, WAITING_BYTES_MAX)

    # The call's side.

    def message(self, data: bytes) -> None:
        """What the client says."""
        try:
            self._door.listens(self._principal(self._call))
            said = read(data)
            if isinstance(said, bytes):
                self._talk.hear(said)
            else:
                self._talk.say(said)
        except Exception as error:
            self._talk.fail(error)

    def ended(self) -> None:
        """It says nothing more."""
        self._talk.finish()

    def cancelled(self) -> None:
        """It is gone."""
        self._talk.gone()

    # The conversation's side.

    def tell(self, told: Told) -> None:
        """Send a message."""
        self._call.send(written(told))

    async def room(self) -> None:
        """Return when the client has read what was sent."""
        while self._call.waiting:
            await self._clock.sleep(LOOK_S)

    def hold(self) -> None:
        """Take no more messages."""
        self._call.hold()

    def go_on(self) -> None:
        """Take more."""
        self._call.go_on()

    def hang_up(self, last: End | Move | Trouble | None, error: Exception | None) -> None:
        """End the call with a status."""
        self._call.finish(_status(last) if isinstance(last, Trouble) else None)


def read(data: bytes) -> Said | bytes:
    """What a message says: one of `spoken.Said`, or audio. BadInput, TooLarge."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise errors.TooLarge(f"a message of {len(data)} bytes, at most {MESSAGE_BYTES_MAX}: send less at a time")
    message = _SAID()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise errors.BadInput(wire.BROKEN) from None
    match message.WhichOneof("said"):
        case "audio":
            audio: bytes = message.audio
            return audio
        case "start":
            return _start(message.start)
        case "ack":
            return Ack(seq=message.ack.seq)
        case "edit":
            edit = message.edit
            text = edit.text if edit.HasField("text") else None
            return Edit(segment=edit.segment, text=text, speaker=edit.speaker if edit.HasField("speaker") else None)
        case "finish":
            return Finish()
        case _:
            raise errors.BadInput("a message that says nothing: send start, audio, ack, edit or finish")


def _start(message: Message) -> Start:
    given = {name: value for name in Start.__struct_fields__ if (value := getattr(message, name))}
    try:
        return msgspec.convert(given, Start, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise errors.BadInput(f"start: {error}") from None


def written(told: Told) -> bytes:
    """A message of `spoken.Told` as bytes of `Told`."""
    message = _TOLD()
    part = getattr(message, str(told.__struct_config__.tag))
    part.SetInParent()
    _put(part, told)
    data: bytes = message.SerializeToString()
    return data


def _put(message: Message, struct: msgspec.Struct) -> None:
    """The fields of a struct into the message of the same fields."""
    for name in struct.__struct_fields__:
        value: Any = getattr(struct, name)
        if value is None:
            continue
        if isinstance(value, msgspec.Struct):
            part = getattr(message, name)
            part.SetInParent()
            _put(part, value)
        elif isinstance(value, list):
            for one in value:
                _put(getattr(message, name).add(), one)
        elif isinstance(value, dict):
            for key, cap in value.items():
                kind = "text" if isinstance(cap, str) else "flag" if isinstance(cap, bool) else "number"
                setattr(message.caps[key], kind, cap)
        else:
            setattr(message, name, value)


class _Ended(errors.Error):
    """What was told already, as the status of the call."""


class _Later(errors.Busy):
    """The same, where it is worth trying again."""


def _status(last: Trouble) -> errors.Error:
    error: errors.Error = _Later(last.error, last.retry_s) if last.retry_s else _Ended(last.error)
    error.code = last.code.upper() if last.code.upper() in CODES else error.code
    return error
