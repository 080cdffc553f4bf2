"""From the tokens of a recogniser to words: where one begins and ends in the text, in time, and how sure it is.

Rules of the room:
- A token is bytes: a Han character may be spread over several, and one may hold several of them. So everything between
  tokens and words is counted in bytes of the text.
- Words are split at spaces; in writing without spaces each character is one, with the punctuation that clings to it.
- Text is never lost or made up: the words, written one behind the other, are the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.models.speech.heard import HeardWord

_ALONE = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Han characters and kana, which are written without spaces."""
_OPENING = "（《〈「『【〔［“‘"
_CLOSING = "，。！？；：、）》〉」』】〕］”’…—～・,.!?;:"
_WORD = re.compile(rf"(\s*)((?:[{_OPENING}]*[{_ALONE}][{_CLOSING}]*)|[^\s{_ALONE}{_OPENING}]+|[{_OPENING}]+)")
_PAUSE_S = 0.15
_NO_TEXT, _GAP = re.compile("[\ud800-\udfff]"), "\ufffd"  # bytes that belong to no character
_FIRST_ALONE = re.compile(rf"[{_OPENING}]*[{_ALONE}]")


class Piece(NamedTuple):
    """A word in a text: its `text`, whether a `space` goes before it, and its characters `begin` to `end` there, the
    space with them."""

    text: str
    space: bool
    begin: int
    end: int


def split(text: str, goes_on: bool = False) -> list[Piece]:
    """The words of a text. A first word without a space before it has none where the text `goes_on` from another, or
    where it is written without."""
    found: list[Piece] = []
    for match in _WORD.finditer(text):
        space = bool(match[1]) or (not found and not goes_on)
        if not found and not goes_on and _FIRST_ALONE.match(match[2]):
            space = False
        found.append(Piece(match[2], space, match.start(), match.end()))
    return found


def begun(text: str) -> str:
    """A text as it stands at the beginning of what is recognised: with a space before it where it is written with."""
    text = text.strip()
    return text if not text or _FIRST_ALONE.match(text) else f" {text}"


class Tokens(NamedTuple):
    """What was recognised: the bytes of each token, the `clock` from each one's beginning to the end of the last
    (seconds, one more than tokens), and the probability of each."""

    spelling: Sequence[bytes]
    clock: Sequence[float]
    sure: Sequence[float]


def words(tokens: Tokens, prefix: str = "", respell: Callable[[str], str] | None = None) -> list[HeardWord]:
    """The words of tokens, in order, times never going back. Those that spell `prefix`, where the text begins with it,
    come first, exactly as they are in it; what is written right behind it is a word of its own. `respell` gives a text
    in other characters, as many as it has; what the prefix spells stays."""
    text = text_of(tokens.spelling)
    edges = np.concatenate([[0], np.cumsum([len(one) for one in tokens.spelling])])
    said = begun(prefix) if text.startswith(begun(prefix)) else ""
    pieces = [*split(said), *_shifted(split(text[len(said) :], goes_on=bool(said)), len(said))]
    offsets = np.concatenate([[0], np.cumsum([_width(one) for one in text])])
    shown = _NO_TEXT.sub(_GAP, text)
    if respell is not None:
        shown = shown[: len(said)] + respell(shown[len(said) :])
    found = []
    at = 0.0
    for piece in pieces:
        begin, end = int(offsets[piece.begin]), int(offsets[piece.end])
        start, stop = (float(np.interp(byte, edges, tokens.clock)) for byte in (begin, end))
        first = int(np.searchsorted(edges, begin, "right")) - 1
        last = max(first + 1, int(np.searchsorted(edges, end, "left")))
        sure = float(np.mean(tokens.sure[first:last])) if len(tokens.sure) else 0.0
        start = max(at, start)
        at = max(start, stop)
        word = shown[piece.begin : piece.end].strip().replace(_GAP, "")
        if word:
            found.append(HeardWord(word, round(start, 3), round(at, 3), round(min(1.0, sure), 4), piece.space))
    return found


def without_silence(found: Sequence[HeardWord], loud: NDArray[np.bool_], column_s: float) -> list[HeardWord]:
    """The words without the silence at their edges where it is over .15 s: a decoder gives a pause to the word before
    it. `loud`: whether anything is heard, every `column_s`. A word in silence stays as it is."""
    kept = []
    for word in found:
        begin, end = round(word.start / column_s), round(word.end / column_s)
        (heard,) = np.nonzero(loud[begin:end])
        start, stop = word.start, word.end
        if len(heard):
            first, last = (begin + heard[0]) * column_s, (begin + heard[-1] + 1) * column_s
            start = round(float(first), 3) if first - start > _PAUSE_S else start
            stop = round(float(last), 3) if stop - last > _PAUSE_S else stop
        kept.append(msgspec.structs.replace(word, start=start, end=stop))
    return kept


def text_of(spelling: Sequence[bytes]) -> str:
    """The text of tokens; a byte that belongs to no character becomes a lone surrogate, so that bytes still count."""
    return b"".join(spelling).decode("utf-8", "surrogateescape")


def _shifted(pieces: Sequence[Piece], by: int) -> Iterator[Piece]:
    for piece in pieces:
        yield piece._replace(begin=piece.begin + by, end=piece.end + by)


def _width(character: str) -> int:
    return len(character.encode("utf-8", "surrogateescape"))
