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
APART_S: Final = 0.5
"""Two hypotheses that agree have heard so much more from one to the other: what was heard twice says the same twice."""


def key(word: Word) -> str:
    """What all writings of a word have in common: case and punctuation do not count."""
    return "".join(letter for letter in word.text.casefold() if letter.isalnum()) or word.text


def ends_sentence(words: Sequence[Word]) -> bool:
    """Whether a full stop stands behind the last word."""
    return bool(words) and words[-1].text.rstrip("\"'”’」』)）").endswith(STOPS)


def behind(stable: Sequence[Word], words: Sequence[Word]) -> list[Word]:
    """The words of a hypothesis that come after the stable ones, which it should begin with. If it does not, as many of
    its first words are taken for the stable ones as are most like them (Levenshtein distance over words; among equals
    the number that is nearest to theirs)."""
    mine, theirs = [key(word) for word in stable], [key(word) for word in words]
    if mine == theirs[: len(mine)]:
        return list(words[len(mine) :])
    cost = list(range(len(theirs) + 1))
    for n, one in enumerate(mine, 1):
        diagonal, cost[0] = cost[0], n
        for k, other in enumerate(theirs, 1):
            diagonal, cost[k] = cost[k], min(diagonal + (one != other), cost[k] + 1, cost[k - 1] + 1)
    first = min(range(len(cost)), key=lambda k: (cost[k], abs(k - len(mine))))
    return list(words[first:])


def timed(stable: Sequence[Word], words: Sequence[Word]) -> list[Word] | None:
    """Stable words with the times of a later hearing; None: that does not begin with the same words."""
    if [key(word) for word in words[: len(stable)]] != [key(word) for word in stable]:
        return None
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
        self._past: deque[tuple[int, list[str]]] = deque(maxlen=REMEMBERED)  # what was heard to, and the words as keys

    def hear(self, words: Sequence[Word], upto: int, known: int = 0) -> list[Word]:
        """A hypothesis of the segment up to the sample `upto`, without the first `known` stable words: how the whole
        segment reads now, the stable words first, each word with its stability."""
        rest = behind(self.stable[known:], words)
        whole = [*self.stable, *rest]
        now = [key(word) for word in whole]
        apart = [words for heard, words in self._past if heard <= upto - APART_S * RATE]
        self._past.append((upto, now))
        before = apart[-1] if apart else []
        for n in range(len(self.stable), min(len(whole), len(before))):
            if before[n] != now[n] or whole[n].end > upto / RATE - self._look_ahead_s:
                break
            self.stable.append(replace(whole[n], stability=1.0))
        return [
            *self.stable,
            *(replace(whole[n], stability=self._share(n)) for n in range(len(self.stable), len(whole))),
        ]

    def retime(self, words: Sequence[Word], known: int) -> bool:
        """Give the stable words behind the first `known` the times of this hypothesis; False: it does not begin with
        them, and they keep theirs."""
        again = timed(self.stable[known:], words)
        if again is not None:
            self.stable[known:] = again
        return again is not None

    def _share(self, n: int) -> float:
        mine = self._past[-1][1][n]
        had = sum(len(past) > n and past[n] == mine for _, past in self._past)
        return min(had / REMEMBERED, UNSURE_MAX)
