"""The gate that every word of a session passes before it leaves or is kept.

Rules of the room:
- What is masked in a final was in no partial, and no stable word changes when it is masked: what passes as stable was
  decided from stable words alone, whatever follows (guard/spoken.py). Of what is not decided yet no digit is shown, nor
  an address that is being said: "…" stands there.
- So stable words come at least one word later than the recogniser has them.
- A number that goes on in the next segment stays masked there. Of its beginning a final may have shown at most three
  digits that nothing announced, or two said one by one, or a year: the text behind them was not yet spoken. What stands
  at the beginning of a segment goes on with a number that the one before ended in, if it comes within PAUSE_S: from the
  end of speech to where it begins again, which is the same for all partials and the final; times of words are not.
- What is kept of a session (`save`) is masked text and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from millstream.guard.pii import redact
from millstream.guard.spoken import CONTEXT, Behind, Reading, read, unsure
from millstream.guard.spoken_numbers import Token, tokens
from millstream.spoken import Word, written

PAUSE_S: Final = 5.0
WITHHELD: Final = "…"
Span = tuple[float, float]
"""Seconds of the session, from the start of a word to the end of one."""


class _Place(NamedTuple):
    """Tokens [first, stop) in whose place `text` stands."""

    first: int
    stop: int
    text: str


class Gate:
    """The words of one session, in order: each `partial` and the `final` of a segment before those of the next."""

    def __init__(self) -> None:
        self._before, self._behind, self._end = "", Behind(), 0.0

    def partial(self, words: Sequence[Word], stable: int, onset: float) -> tuple[list[Word], int]:
        """The words as they may be shown, and how many of those will not change. The speech of their segment begins at
        `onset`, in seconds of the session."""
        carried = self._carried(onset)
        sure = self._read(words[:stable], carried, ended=False)
        whole = tokens([one.text for one in words], [one.space for one in words])
        places = [_Place(*one[:2], f"[{one.label}]") for one in sure.found if one.stop <= sure.undecided]
        hidden = unsure(whole, carried)
        places += _withheld(whole, sorted(token for token in hidden if token >= sure.undecided))
        shown, ends = _shown(words, whole, places)
        firm = sure.tokens[sure.undecided].word if sure.undecided < len(sure.tokens) else stable
        return shown, sum(end < firm for end in ends)

    def final(self, words: Sequence[Word], onset: float, end: float) -> tuple[list[Word], list[Span]]:
        """The words of a segment that has ended, and where its audio must not be heard. Its speech lies from `onset` to
        `end`, in seconds of the session."""
        found = self._read(words, self._carried(onset), ended=True)
        shown, _ = _shown(words, found.tokens, [_Place(*one[:2], f"[{one.label}]") for one in found.found])
        spans = []
        for one in found.found:
            first, last = words[found.tokens[one.first].word], words[found.tokens[one.stop - 1].word]
            spans.append((first.start, max(first.end, last.end)))
        if words:
            self._before, self._behind = f"{self._before} {written(shown)}"[-CONTEXT:], found.behind
            self._end = end
        return shown, spans

    def edit(self, text: str) -> str:
        """What a person wrote in the place of a final."""
        return self._alone(text, False)

    def name(self, text: str) -> str:
        """What a person calls a speaker. It goes on nowhere: it is whole, and may end in a number ("room 3000")."""
        return self._alone(text, True)

    def _alone(self, text: str, whole: bool) -> str:
        found = read([text], [False], "", Behind(), ended=True, alone=whole)
        shown, _ = _shown(
            [Word(text, 0.0, 0.0)], found.tokens, [_Place(*one[:2], f"[{one.label}]") for one in found.found]
        )
        return redact(written(shown))

    def save(self) -> dict[str, Any]:
        """Where the session stands."""
        return {"before": self._before, "behind": list(self._behind), "end": self._end}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from there."""
        self._before, self._end = str(saved["before"]), float(saved["end"])
        digits, masked, word = saved["behind"]
        self._behind = Behind(int(digits), bool(masked), bool(word))

    def _read(self, words: Sequence[Word], carried: Behind, ended: bool) -> Reading:
        return read([one.text for one in words], [one.space for one in words], self._before, carried, ended)

    def _carried(self, onset: float) -> Behind:
        """What may go on from the segment before."""
        return self._behind if onset - self._end <= PAUSE_S else Behind()


def _withheld(of: Sequence[Token], hidden: Sequence[int]) -> list[_Place]:
    """A mark for each row of hidden tokens, over the signs between them."""
    places: list[_Place] = []
    for token in hidden:
        if places and all(not of[at].text[0].isalnum() for at in range(places[-1].stop, token)):
            places[-1] = places[-1]._replace(stop=token + 1)
        else:
            places.append(_Place(token, token + 1, WITHHELD))
    return places


def _shown(words: Sequence[Word], of: Sequence[Token], places: Sequence[_Place]) -> tuple[list[Word], list[int]]:
    """The words with something else in these places, and of each the index of the last word that it stands for."""
    shown: list[Word] = []
    ends: list[int] = []
    offsets = _offsets(words)
    at = 0
    waiting = list(places)[::-1]
    while at < len(words):
        if not waiting or of[waiting[-1].first].word > at:
            shown.append(words[at])
            ends.append(at)
            at += 1
            continue
        first, last, text, reached = at, at, "", offsets[at]
        while waiting and of[waiting[-1].first].word <= last:
            place = waiting.pop()
            start, stop = of[place.first].start, of[place.stop - 1].stop
            text += _between(words, offsets, reached, start).rstrip("+(") + place.text
            last, reached = max(last, of[place.stop - 1].word), stop
        text += _between(words, offsets, reached, offsets[last] + len(words[last].text))
        shown.append(_one(words[first : last + 1], text))
        ends.append(last)
        at = last + 1
    return shown, ends


def _one(of: Sequence[Word], text: str) -> Word:
    """One word in the place of several."""
    return Word(
        text, of[0].start, max(one.end for one in of), min(one.confidence for one in of),
        min(one.stability for one in of), of[0].space,
    )  # fmt: skip


def _offsets(words: Sequence[Word]) -> list[int]:
    """Where each word begins in the text as one reads it; as guard/spoken_numbers.py counts."""
    offsets, at = [], 0
    for index, word in enumerate(words):
        at += word.space and index > 0
        offsets.append(at)
        at += len(word.text)
    return offsets


def _between(words: Sequence[Word], offsets: Sequence[int], start: int, stop: int) -> str:
    """The text from one position to another."""
    parts: list[str] = []
    at = start
    for word, begin in zip(words, offsets, strict=True):
        end = begin + len(word.text)
        if end <= start or begin >= stop:
            continue
        parts += (" " * max(0, begin - at), word.text[max(0, start - begin) : max(0, stop - begin)])
        at = min(end, stop)
    return "".join(parts) + " " * max(0, stop - max(at, start))
