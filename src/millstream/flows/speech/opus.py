"""Packets of Opus (RFC 6716) as audio, by FFmpeg's own decoder.

A decoder's state cannot be written down, and it forgets: after PRE_ROLL packets of what came before, a fresh one says
what an old one would, to within -90 dB. So every RESTART packets a fresh one takes over, at a packet's number and
whatever happens around it, and a session's state is the packets since then: who goes on from it hears the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from millstream.errors import BadInput, Missing, TooLarge
from millstream.flows.speech.resample import Sound

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext

RATE: Final = 48_000
"""Hz of what comes out, whatever was put in: the decoder's own."""
PACKET_BYTES_MAX: Final = 61_440
"""RFC 7845 allows no more for 120 ms of one or two channels."""
RESTART: Final = 500
PRE_ROLL: Final = 25
HELD_BYTES_MAX: Final = 256 << 10
"""Packets that are kept weigh at most so much and one more; it bounds a session's state."""


class Packets:
    """One stream of packets, each of one or two channels, which the decoder mixes."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._fresh = 0  # of those kept, so many only told the decoder what came before
        self._bytes = 0
        self._decoder = _decoder()

    def feed(self, packet: bytes) -> Sound:
        """The audio of one packet, float32 [n] at 48 kHz. BadInput: it is none; then it is as before the call."""
        if not packet:
            raise BadInput("an empty message where a packet of Opus should be: send nothing instead")
        if len(packet) > PACKET_BYTES_MAX:
            raise TooLarge(
                f"a packet of Opus of {len(packet)} bytes, {PACKET_BYTES_MAX} are taken: send each by itself"
            )
        if len(self._kept) - self._fresh >= RESTART or self._bytes >= HELD_BYTES_MAX:
            self._begin(self._kept[-PRE_ROLL:])
        try:
            sound = _decoded(self._decoder, packet)
        except BadInput:
            self._again()
            raise
        self._kept.append(packet)
        self._bytes += len(packet)
        return sound

    def save(self) -> dict[str, Any]:
        """All there is to go on from."""
        return {"kept": self._kept.copy(), "fresh": self._fresh}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what was saved."""
        self._kept, self._fresh = list(saved["kept"]), saved["fresh"]
        self._again()

    def _begin(self, before: list[bytes]) -> None:
        while sum(map(len, before)) > HELD_BYTES_MAX // 2:  # else packets of this size would restart it every time
            before = before[1:]
        self._kept, self._fresh = before, len(before)
        self._again()

    def _again(self) -> None:
        """A decoder that has heard what is kept."""
        self._decoder, self._bytes = _decoder(), sum(map(len, self._kept))
        for packet in self._kept:
            _decoded(self._decoder, packet)


def _decoder() -> AudioCodecContext:
    try:
        import av
    except ImportError:
        raise Missing.extra("speech", "audio in Opus") from None
    made = av.CodecContext.create("opus", "r")
    made.sample_rate, made.layout, made.thread_count = RATE, "mono", 1
    return made


def _decoded(decoder: AudioCodecContext, packet: bytes) -> Sound:
    import av

    try:
        frames = [frame.to_ndarray().reshape(-1) for frame in decoder.decode(av.Packet(packet))]
    except av.FFmpegError as error:
        raise BadInput(
            f"a message of {len(packet)} bytes is no packet of Opus ({error.strerror}): send one packet a message, as "
            "the encoder gives them, without a container around it"
        ) from None
    return np.concatenate(frames) if frames else np.zeros(0, np.float32)
