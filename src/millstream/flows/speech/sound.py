"""Bytes of a client as audio inside: float32, one channel, 16 kHz.

The same bytes give the same samples however they were cut into messages (of Opus, a packet is a message). What cannot
be audio is refused before anything has changed, so that whoever catches the error still has a whole session.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from millstream.errors import BadInput, TooLarge
from millstream.flows.speech import opus
from millstream.flows.speech.resample import Resampler, Sound
from millstream.flows.speech.settings import RATE
from millstream.spoken import Form, Start

BYTES_MAX: Final = 4 << 20
"""Of one message: two minutes of PCM16 at 16 kHz."""
LOUD_MAX: Final = 64.0
"""A float32 sample beyond is no audio in -1 .. 1 that was a little too loud, but another scale."""
_WIDTH = {"pcm16": 2, "float32": 4}


class Intake:
    """One client's audio. `form`, `rate` in Hz and `channels` as in `spoken.Start`; of Opus the decoder's rate counts.

    `taken`: frames that came (one sample of each channel); `clipped`: samples beyond -1 .. 1, cut off there; `dropped`:
    bytes of half a frame at the end.
    """

    def __init__(self, form: Form = "pcm16", rate: int = RATE, channels: int = 1) -> None:
        checked(form, rate, channels)
        self.taken = self.clipped = self.dropped = 0
        self.rate = opus.RATE if form == "opus" else rate
        self._channels, self._width = channels, _WIDTH.get(form, 0)
        self._packets = opus.Packets() if form == "opus" else None
        self._resampler = Resampler(self.rate)
        self._rest = b""
        self._skip = 0

    @property
    def audio_ms(self) -> int:
        """Milliseconds that came, rounded down; after `restore` the client's next frame is audio_ms * rate // 1000."""
        return self.taken * 1000 // self.rate

    def feed(self, data: bytes) -> Sound:
        """float32 [n], what is ready of it. BadInput (no numbers, another scale, no packet), TooLarge: nothing of
        `data` was taken."""
        if len(data) > BYTES_MAX:
            raise TooLarge(f"a message of {len(data)} bytes of audio, {BYTES_MAX} are taken: send smaller ones")
        if self._packets is not None:
            frames, rest, loud = self._packets.feed(data), b"", 0
        else:
            frames, rest, loud = self._frames(self._rest + data)
        if self._skip:
            frames, self._skip = frames[self._skip :], max(0, self._skip - len(frames))
        self._rest = rest
        self.clipped += loud
        self.taken += len(frames)
        return self._resampler.feed(frames)

    def flush(self) -> Sound:
        """What is left, once, at the end of the audio."""
        self.dropped, self._rest = len(self._rest), b""
        return self._resampler.flush()

    def save(self) -> dict[str, Any]:
        """All there is to go on from; the half of a frame will come again."""
        return {
            "taken": self.taken,
            "clipped": self.clipped,
            "resampler": self._resampler.save(),
            "packets": self._packets.save() if self._packets is not None else None,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved of the same form, rate and channels. The client begins again at `audio_ms`; frames
        of a millisecond that was begun are known already and are passed over. Of Opus it begins with the packet after
        the last one that was taken."""
        self.taken, self.clipped = saved["taken"], saved["clipped"]
        self._resampler.restore(saved["resampler"])
        self._rest, self._skip = b"", 0
        if self._packets is not None:
            self._packets.restore(saved["packets"])
        else:
            self._skip = self.taken - self.audio_ms * self.rate // 1000

    def _frames(self, data: bytes) -> tuple[Sound, bytes, int]:
        """The whole frames of `data` mixed to one channel, the bytes after them, and how many samples were cut off."""
        whole = len(data) - len(data) % (self._width * self._channels)
        if self._width == 2:
            samples = np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(32768)
            loud = 0
        else:
            samples = np.frombuffer(data[:whole], "<f4").astype(np.float32)
            loud = self._tamed(samples)
        of = samples.reshape(-1, self._channels)
        mixed = of[:, 0].copy()
        for channel in range(1, self._channels):
            mixed += of[:, channel]
        if self._channels > 1:
            mixed /= np.float32(self._channels)
        return mixed, data[whole:], loud

    def _tamed(self, samples: Sound) -> int:
        """Cut what is beyond -1 .. 1 off, in place; how many. BadInput: that would not help."""
        loud = np.abs(samples)
        if not (loud <= LOUD_MAX).all():  # also where it is no number
            first = int(np.argmin(loud <= LOUD_MAX))
            raise BadInput(
                f"audio sample {self.taken + first // self._channels} is {samples[first]:g}: float32 audio lies within "
                "-1 .. 1; divide samples of 16 bits by 32768, and send no NaN or infinity"
            )
        count = int((loud > 1).sum())
        if count:
            np.clip(samples, -1, 1, out=samples)
        return count


def checked(form: str, rate: int, channels: int) -> None:
    """BadInput: there is no such audio here."""
    try:
        start = msgspec.convert({"type": "start", "form": form, "rate": rate, "channels": channels}, Start)
    except msgspec.ValidationError as error:
        raise BadInput(f"audio of form {form!r}, {rate} Hz, {channels} channels: {error}") from None
    if start.form == "opus" and channels > 2:
        raise BadInput(f"Opus of {channels} channels: one packet holds one or two; send them as pcm16")
