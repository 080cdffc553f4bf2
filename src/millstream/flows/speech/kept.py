"""Audio of segments that a person should look at, without what is personal: FOLDER/MILLISECONDS-SESSION-SEGMENT.wav.

Rules of the room:
- Audio is kept only where it is known what was said in it: not of a segment whose words could not be had or are missing
  (look.py), and not where the times of what was masked cannot be trusted (words/mute.py).
- A file is never there with what is muted in it: it is muted in memory, written aside and renamed.
- Nothing stays longer than its days, nor more than BYTES_MAX in all; the oldest go first. A session's go with `forget`.
- Who looks on holds nobody up: files are written by a thread, and of more than WAITING_MAX that wait none is kept.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.words.mute import Span, droppable, mute, widened
from millstream.meter import Meter
from millstream.spoken import Word
from millstream.store.blob import write_atomic

BYTES_MAX: Final = 1 << 30
WAITING_MAX: Final = 16
DAY_S: Final = 86_400.0
_NAME: Final = re.compile(r"(\d{13})-([\w.]+)-([\w.]+)\.wav")
_ODD: Final = re.compile(r"[^A-Za-z0-9_.]")
log = logging.getLogger(__name__)


class Kept:
    """The audio that is kept in a folder, for so many days. One process may write while others do: names differ by
    session. `bytes_max`: of all files."""

    def __init__(self, folder: Path, days: float, meter: Meter, bytes_max: int = BYTES_MAX) -> None:
        self.folder, self._days, self._bytes_max = folder, days, bytes_max
        self._kept = meter.counter("millstream_speech_audio_kept_total", "segments whose audio is kept for review")
        self._dropped = meter.counter(
            "millstream_speech_audio_dropped_total",
            "segments whose audio was to be kept, and could not be muted or written",
        )
        self._thread = ThreadPoolExecutor(1, "millstream-kept")
        self._room = threading.BoundedSemaphore(WAITING_MAX)

    def put(
        self,
        session: str,
        segment: str,
        audio: Callable[[], NDArray[np.float32]],
        begin: float,
        words: Sequence[Word],
        spans: Sequence[Span],
        timed: bool,
        now: float,
    ) -> str:
        """Keep a segment's audio: float32 mono at RATE that begins at `begin` seconds of the session, whose final
        `words` were masked at `spans`; `timed`: whether the times of all of them were measured. The file's name, ""
        where none is kept. It is there a little later."""
        if not words or droppable(words, spans, timed) or not self._room.acquire(blocking=False):
            self._dropped.add()
            return ""
        name = f"{round(now * 1000):013d}-{_plain(session)}-{_plain(segment)}.wav"
        try:
            quiet = mute(audio(), widened(words, spans), begin)
            self._thread.submit(self._write, name, quiet, now)
        except BaseException:
            self._room.release()
            raise
        return name

    def expire(self, now: float) -> int:
        """Take away what is too old, and the oldest of what is too much; how many files."""
        files = sorted(_files(self.folder), key=lambda one: one[1])
        sizes = [_size(path) for path, _, _ in files]
        left, gone = sum(sizes), 0
        for (path, at, _), size in zip(files, sizes, strict=True):
            if at >= now - self._days * DAY_S and left <= self._bytes_max:
                break
            left -= size
            gone += _gone(path)
        return gone

    def close(self) -> None:
        """Write what waits, and end."""
        self._thread.shutdown()

    def _write(self, name: str, audio: NDArray[np.float32], now: float) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self.folder / name, _wav(audio), 0o600)
            self._kept.add()
            self.expire(now)
        except (OSError, errors.Full) as error:
            self._dropped.add()
            log.warning("audio of a segment is not kept: %s", error)
        finally:
            self._room.release()


def forget(folder: Path, who: Callable[[str], bool]) -> int:
    """Take away what is kept of the sessions that `who` says yes to; how many files."""
    return sum(_gone(path) for path, _, session in _files(folder) if who(session))


def _files(folder: Path) -> Iterator[tuple[Path, float, str]]:
    """Every file with when it was kept, unix seconds, and of which session."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is not None:
            yield path, int(match[1]) / 1000, match[2]


def _plain(name: str) -> str:
    return _ODD.sub("_", name)[:64] or "_"


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _gone(path: Path) -> bool:
    with suppress(FileNotFoundError):
        path.unlink()
        return True
    return False


def _wav(audio: NDArray[np.float32]) -> bytes:
    """PCM of 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(audio, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
