"""What a recogniser says of audio: words with their times, as one JSON text a row."""

from __future__ import annotations

import msgspec


class HeardWord(msgspec.Struct, omit_defaults=True):
    """A word with its punctuation. `start`, `end`: seconds from the first sample that was given; `confidence` 0 .. 1, 0
    of a recogniser that tells none; `space`: whether one goes before it (not in Chinese)."""

    text: str
    start: float
    end: float
    confidence: float = 0.0
    space: bool = True


class Heard(msgspec.Struct, omit_defaults=True):
    """`no_speech`: how likely there was none, 0 .. 1; `compression`: length of the text over its length compressed,
    over 2.4 is a loop; `tokens`: how many the text took; `timed`: False where the times of words are guesses."""

    words: list[HeardWord] = []
    language: str = ""
    no_speech: float = 0.0
    compression: float = 0.0
    tokens: int = 0
    timed: bool = True


_encode = msgspec.json.Encoder().encode
read = msgspec.json.Decoder(Heard).decode
"""The Heard of a recogniser's output."""


def told(heard: Heard) -> bytes:
    """A Heard as a recogniser's output."""
    return _encode(heard)
