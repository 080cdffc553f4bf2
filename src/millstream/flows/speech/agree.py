"""Which words of an open segment will not change any more: those that two hypotheses in a row agree on.

The rule is LocalAgreement-2 (Liu, Spanakis, Niehues, "Low-Latency Sequence-to-Sequence Speech Recognition", 2020; as
whisper_streaming has it). A stable word is written as it was when it became stable, for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from millstream.flows.speech.settings import RATE
from millstream.spoken import Word

REMEMBERED: Final = 3
"""Hypotheses that stability is a share of."""
UNSURE_MAX: Final = 0.99
"""The stability of a word that is not stable stays below."""
STOPS: Final = (".", "?", "!", "。", "？", "！")
SLACK_S: Final = 0.05
"""A word may begin so much before the end of the one before it: times of words are guesses."""


def key(word: Word) -> str:
    """What all writings of a word have in common: case and punctuation do not count."""
    return "".join(letter for letter in word.text.casefold() if letter.isalnum()) or word.text


def ends_sentence(words: Sequence[Word]) -> bool:
    """Whether a full stop stands behind the last word."""
    return bool(words) and words[-1].text.rstrip("\"'”’」』)）").endswith(STOPS)


def behind(stable: Sequence[Word], words: Sequence[Word]) -> list[Word]:
    """The words of a hypothesis that come after the stable ones, which it should begin with: if it does not, those that
    are spoken after them."""
    if not stable or [key(word) for word in words[: len(stable)]] == [key(word) for word in stable]:
        return list(words[len(stable) :])
    return [word for word in words if word.start >= stable[-1].end - SLACK_S]


def timed(stable: Sequence[Word], words: Sequence[Word]) -> list[Word]:
    """Stable words with the times of a later hearing, where that begins with the same words."""
    if [key(word) for word in words[: len(stable)]] != [key(word) for word in stable]:
        return list(stable)
    return [
        replace(word, start=again.start, end=again.end, confidence=again.confidence)
        for word, again in zip(stable, words, strict=False)
    ]


class Agreement:
    """Of one segment. `look_ahead` samples: a word that ends closer to what was heard last is not stable yet."""

    def __init__(self, look_ahead: int = 0) -> None:
        self._look_ahead_s = look_ahead / RATE
        self.stable: list[Word] = []
        """Words that will not change."""
        self._past: deque[list[str]] = deque(maxlen=REMEMBERED)  # the words of whole hypotheses

    def hear(self, words: Sequence[Word], upto: int, known: int = 0) -> list[Word]:
        """A hypothesis of the segment up to the sample `upto`, without the first `known` stable words: how the whole
        segment reads now, the stable words first, each word with its stability."""
        rest = behind(self.stable[known:], words)
        whole = [*self.stable, *rest]
        self._past.append([key(word) for word in whole])
        before = self._past[-2] if len(self._past) > 1 else []
        for n in range(len(self.stable), min(len(whole), len(before))):
            if before[n] != self._past[-1][n] or whole[n].end > upto / RATE - self._look_ahead_s:
                break
            self.stable.append(replace(whole[n], stability=1.0))
        return [
            *self.stable,
            *(replace(whole[n], stability=self._share(n)) for n in range(len(self.stable), len(whole))),
        ]

    def retime(self, words: Sequence[Word], known: int) -> None:
        """Give the stable words behind the first `known` the times of this hypothesis, which begins with them."""
        self.stable[known:] = timed(self.stable[known:], words)

    def _share(self, n: int) -> float:
        mine = self._past[-1][n]
        had = sum(len(past) > n and past[n] == mine for past in self._past)
        return min(had / REMEMBERED, UNSURE_MAX)
