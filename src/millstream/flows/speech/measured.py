"""What sessions count: how much they heard, how long it took, and how often what was shown changed."""

from __future__ import annotations

from typing import Final

from millstream.meter import Meter

PARTS: Final = ("upload", "queue", "compute")


class Numbers:
    """The series of all sessions of a process. Seconds throughout; see docs/operations.md for each."""

    def __init__(self, meter: Meter) -> None:
        count, spread = meter.counter, meter.histogram
        self.sessions = meter.gauge("millstream_speech_sessions", "open speech sessions")
        self.begun = count("millstream_speech_sessions_total", "speech sessions begun")
        self.resumed = count("millstream_speech_resumed_total", "speech sessions gone on with")
        self.audio = count("millstream_speech_audio_seconds_total", "seconds of audio heard")
        self.speech = count("millstream_speech_heard_seconds_total", "seconds of it that were given to a recogniser")
        self.detecting = count("millstream_speech_detect_seconds_total", "seconds spent on finding speech")
        self.recognising = count("millstream_speech_compute_seconds_total", "seconds that recognisers took")
        self.segments = count("millstream_speech_segments_total", "segments that became final")
        self.empty = count("millstream_speech_empty_total", "segments with speech and without a word")
        self.suppressed = count("millstream_speech_suppressed_total", "words on silence that were not told")
        self.words = count("millstream_speech_words_total", "words of final segments")
        self.revised = count("millstream_speech_words_revised_total", "words shown and changed before they were final")
        self.flips = count(
            "millstream_speech_speakers_changed_total", "final segments shown with a speaker, then with another"
        )
        self.steps = count("millstream_speech_steps_total", "hypotheses asked for")
        self.missed = count("millstream_speech_steps_missed_total", "of these, those that failed or were too late")
        self.skipped = count("millstream_speech_steps_skipped_total", "hypotheses not asked for because of overload")
        self.dropped = count("millstream_speech_partials_dropped_total", "partials that a slow client did not get")
        self.failed = count("millstream_speech_finals_failed_total", "segments whose final text is what was stable")
        self.first_token = spread(
            "millstream_speech_first_token_seconds", "from the first of speech to its first words"
        )
        self.late = count("millstream_speech_first_token_late_total", "of these, those over the profile's budget")
        self.endpoint = spread("millstream_speech_endpoint_seconds", "from the end of speech to its final text")
        self.told = spread("millstream_speech_told_seconds", "from the end of what a partial tells of to the partial")
        self.rtf = spread("millstream_speech_rtf", "seconds of computing a second of audio, of a session")
        self.parts = {
            part: spread("millstream_speech_part_seconds", "of a final text: its parts", {"part": part})
            for part in PARTS
        }
