"""What a serving process does with final texts that want a look: into topic `reviews`, their audio into a folder.

INSTALLATION/state/review-audio/MILLISECONDS-SESSION-SEGMENT.wav
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from millstream import errors
from millstream.app import reviews
from millstream.app.installation import Installation
from millstream.flows.speech.kept import Kept
from millstream.flows.speech.look import Look
from millstream.flows.speech.wiring import Settling
from millstream.meter import Meter
from millstream.spoken import Edited
from millstream.stream import encode
from millstream.types import Review

WAITING_MAX: Final = 256
log = logging.getLogger(__name__)


def folder_of(at: Installation) -> Path:
    """Where audio for review lies."""
    return at.folder / "state" / "review-audio"


class Looking:
    """A Look whose reviews are written to the log by a thread of its own; `version()` of the recogniser. A log that
    cannot be written costs reviews, counted, and nothing else."""

    def __init__(self, at: Installation, meter: Meter, version: Callable[[], str]) -> None:
        settings = at.settings.speech
        self._at = at
        self._kept = Kept(folder_of(at), settings.keep_audio_days, meter)
        self._lost = meter.counter(
            "millstream_speech_reviews_lost_total", "final texts for review that were not logged"
        )
        self._thread = ThreadPoolExecutor(1, "millstream-reviews")
        self._room = threading.BoundedSemaphore(WAITING_MAX)
        kept = self._kept if settings.keep_audio else None
        self._look = Look(meter, at.clock, settings.recogniser, version, self._put, kept)

    def __call__(self, settling: Settling) -> None:
        """The `look` of a Wiring."""
        self._look(settling)

    def edited(self, session: str, told: Edited) -> None:
        """The `edited` of a Wiring."""
        self._look.edited(session, told)

    def close(self) -> None:
        """Write what waits, and end."""
        self._thread.shutdown()
        self._kept.close()

    def _put(self, review: Review) -> None:
        if not self._room.acquire(blocking=False):
            self._lost.add()
            return
        self._thread.submit(self._write, review)

    def expire(self) -> None:
        """Audio goes with its days, also where none is kept any more, and nobody speaks. Blocks; to be called now and
        then."""
        try:
            self._kept.expire(self._at.clock.now())
        except OSError as error:
            log.warning("audio that is too old is not taken away: %s", error)

    def _write(self, review: Review) -> None:
        try:
            with reviews.writer(self._at) as writer:
                writer.append_durable_wait(review.id.encode(), encode(review))
        except (errors.Full, errors.Busy, errors.Conflict, OSError) as error:
            self._lost.add()
            log.warning("a final text for review is not logged: %s", error)
        finally:
            self._room.release()
