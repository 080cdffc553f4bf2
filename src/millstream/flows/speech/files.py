"""Files of sound as audio inside: what FFmpeg reads of WAV, FLAC, MP3, MP4/M4A, AAC, Ogg (Opus, Vorbis), WebM, AIFF.

Rules of the room:
- A file is read from the bytes that are given, and nothing else: containers that name other files or addresses
  (playlists) are not opened, whoever sent them.
- It comes in blocks of about a second, so that a day of audio needs the memory of a second.
- What is wrong with a file is said with its name: whoever hands over a hundred of them wants to know which.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import numpy as np

from millstream.errors import BadInput, Missing, NotFound, TooLarge
from millstream.flows.speech.resample import Resampler, Sound

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

SECONDS_MAX: Final = 24 * 3600.0
CHANNELS_MAX: Final = 8
RATES: Final = (4000, 192_000)
SHORT_S, SHORT = 1.0, 0.02
"""A file that is so much shorter than it says, in seconds and as a share, is damaged."""
_FORMATS = "wav,w64,flac,mp3,mov,mp4,m4a,3gp,aac,ogg,matroska,webm,aiff,caf,au"
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
_TIMED = ("flac", "mov")  # formats whose head has the exact length
SUFFIXES: Final = {
    ".wav", ".w64", ".flac", ".mp3", ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac",
    ".ogg", ".oga", ".opus", ".webm", ".mka", ".mkv", ".aif", ".aiff", ".aifc", ".caf", ".au",
}  # fmt: skip
"""Of files that are taken for recordings, where only a folder is named."""
_KINDS = "WAV, FLAC, MP3, M4A, Ogg (Opus, Vorbis), WebM, AIFF"


def blocks(
    source: Path | IO[bytes], name: str, split: bool = False, seconds_max: float = SECONDS_MAX
) -> Iterator[list[Sound]]:
    """The sound of a file: for each block one float32 [n] at 16 kHz, or with `split` one for each channel, of equal
    lengths. NotFound: no such file; BadInput: no sound in it, damaged (and where); TooLarge: over `seconds_max`."""
    resamplers: list[Resampler] = []
    waiting: list[list[Sound]] = []
    taken = rate = held = 0
    with _opened(source, name) as container:
        for frame in _frames(container, name):
            if not resamplers:
                rate = frame.sample_rate
                channels = _checked(frame, name)
                resamplers = [Resampler(rate) for _ in range(channels if split else 1)]
            waiting.append(_channels(frame, split))
            taken, held = taken + frame.samples, held + frame.samples
            if taken > seconds_max * rate:
                raise TooLarge(f"{name}: longer than {seconds_max:g} s, the most that is taken: cut it into parts")
            if held >= rate:
                yield _resampled(resamplers, waiting)
                waiting, held = [], 0
        declared_s = _declared_s(container)
    if not taken:
        raise BadInput(f"{name}: there is no sound in it (0 samples)")
    if taken / rate < declared_s - max(SHORT_S, SHORT * declared_s):
        raise BadInput(
            f"{name}: damaged: it says that it lasts {declared_s:.1f} s, and {taken / rate:.1f} s of it can be read; a "
            "text of the rest would have a hole"
        )
    if waiting:
        yield _resampled(resamplers, waiting)
    yield [each.flush() for each in resamplers]


def recordings(folder: Path) -> list[Path]:
    """The files of a folder that have a suffix of a recording, by name; none of folders in it, nor hidden ones.
    NotFound: there are none."""
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise NotFound(f"{folder}: no recordings in this folder (folders in it are not looked into); known: {_KINDS}")
    return found


@contextmanager
def _opened(source: Path | IO[bytes], name: str) -> Iterator[InputContainer]:
    try:
        import av
    except ImportError:
        raise Missing.extra("speech", "reading files of sound") from None
    if isinstance(source, Path):
        if source.is_dir():
            raise NotFound(f"{name}: a folder; name a recording in it")
        if not source.is_file():
            raise NotFound(f"{name}: there is no such file")
        with source.open("rb") as file, _opened(file, name) as container:
            yield container
        return
    try:
        container = av.open(source, "r", options=_OPTIONS, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        why = _why(error) if source.seek(0, 2) else "it is empty"
        raise BadInput(f"{name}: no file of sound ({why}); there are: {_KINDS}") from None
    with container:
        if not container.streams.audio:
            raise BadInput(f"{name}: there is no sound in it, only: {', '.join(s.type for s in container.streams)}")
        yield container


def _frames(container: InputContainer, name: str) -> Iterator[AudioFrame]:
    """Its frames as planes of float32."""
    import av

    to_floats, last = av.AudioResampler(format="fltp"), 0.0
    try:
        for frame in container.decode(audio=0):
            last = float(frame.time or last)
            yield from to_floats.resample(frame)
    except (av.FFmpegError, ValueError) as error:  # ValueError: rate or channels change on the way
        raise BadInput(f"{name}: damaged {last:.1f} s from its start ({_why(error)})") from None


def _declared_s(container: InputContainer) -> float:
    """How long it says that it lasts; 0 where it does not, and FFmpeg guesses by size and bit rate."""
    stream = container.streams.audio[0]
    if container.format.name.partition(",")[0] not in _TIMED or stream.duration is None or stream.time_base is None:
        return 0.0
    return float(stream.duration * stream.time_base)


def _checked(frame: AudioFrame, name: str) -> int:
    """The number of its channels."""
    channels = frame.layout.nb_channels
    if channels > CHANNELS_MAX:
        raise BadInput(f"{name}: {channels} channels, at most {CHANNELS_MAX} are taken")
    if not RATES[0] <= frame.sample_rate <= RATES[1]:
        raise BadInput(f"{name}: {frame.sample_rate} Hz, {RATES[0]} to {RATES[1]} Hz are taken")
    return channels


def _channels(frame: AudioFrame, split: bool) -> list[Sound]:
    planes = np.nan_to_num(frame.to_ndarray(), nan=0.0, posinf=1.0, neginf=-1.0)
    np.clip(planes, -1, 1, out=planes)
    if split:
        return list(planes)
    mixed = planes[0].copy()
    for plane in planes[1:]:
        mixed += plane
    return [mixed / np.float32(len(planes))]


def _resampled(resamplers: list[Resampler], waiting: list[list[Sound]]) -> list[Sound]:
    return [each.feed(np.concatenate([one[k] for one in waiting])) for k, each in enumerate(resamplers)]


def _why(error: Exception) -> str:
    return getattr(error, "strerror", "") or str(error)
