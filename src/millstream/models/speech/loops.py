"""Recognisers that repeat themselves: finding a loop in what was said, and ending it.

A decoder that has lost its place says the same words again and again until it runs out of room. People repeat
themselves, too; but not so that the text packs to less than half, nor faster than anybody speaks.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

COMPRESSION_MAX: Final = 2.4
"""Over this, a text is a loop (Radford et al., 2022)."""
RATE_MAX: Final = 6.0
"""Tokens a second of audio; over this, more was said than can be."""
_LEAST = 20
_LONGEST = 40
_TIMES = 3
_DOUBLED = 6


def compression(text: str) -> float:
    """Length of a text over its length compressed; 0 of nothing."""
    data = text.encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data)) if data else 0.0


def looping(text: str, tokens: int, seconds: float) -> bool:
    """Whether a text of so many tokens over so many seconds is a loop; of fewer than 20 tokens none is. A character
    that takes several tokens counts once."""
    pace = min(tokens, len(text))
    return tokens >= _LEAST and (compression(text) > COMPRESSION_MAX or pace > RATE_MAX * seconds + _LEAST)


def unlooped(tokens: Sequence[int]) -> list[int]:
    """Tokens with every run of three or more equal stretches of at most 40 tokens cut to its first one; with it goes
    what was begun of one more at the end. A single token counts from six times on."""
    kept: list[int] = []
    at = 0
    while at < len(tokens):
        length, times = _repeated(tokens, at)
        kept += tokens[at : at + length]
        at += length * times
        rest = len(tokens) - at
        if times > 1 and rest < length and tokens[at:] == tokens[at - length : at - length + rest]:
            break
    return kept


def doubled(tokens: Sequence[object]) -> int:
    """How many tokens at the end are the same as those right before them, at least six; 0: none. A decoder that finds
    no end says its last sentence once more, and so may people: only time tells."""
    for length in range(len(tokens) // 2, _DOUBLED - 1, -1):
        if tokens[-length:] == tokens[-2 * length : -length]:
            return length
    return 0


def _repeated(tokens: Sequence[int], at: int) -> tuple[int, int]:
    """(length, times) of the shortest stretch from `at` on that comes at least three times, else (1, 1)."""
    for length in range(1, min(_LONGEST, (len(tokens) - at) // _TIMES) + 1):
        stretch, times = tokens[at : at + length], 1
        while tokens[at + times * length : at + (times + 1) * length] == stretch:
            times += 1
        if times >= _TIMES and length * times >= 2 * _TIMES:
            return length, times
    return 1, 1
