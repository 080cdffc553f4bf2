"""The likeliest text, found word by word: a beam of hypotheses, of which one that has ended stays (Graves, 2012). A
beam of one takes the likeliest token each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Likely(NamedTuple):
    """The tokens that may come next of each row, the likeliest first, and the logarithms of their probabilities: both
    [rows, at least 2 * beam]."""

    logs: NDArray[np.float32]
    tokens: NDArray[np.int64]


class Text(NamedTuple):
    """A text so far, and the sum of the logarithms of its tokens' probabilities, the end's with them."""

    tokens: list[int]
    log: float

    @property
    def sure(self) -> float:
        """The sum by the text's length."""
        return self.log / max(1, len(self.tokens))


class _Next(NamedTuple):
    log: float
    row: int
    token: int


Step = Callable[[list[int], list[Text]], Likely]
"""What comes behind each text; each is one of the last call's, whose rows are given, with a token more."""


def search(first: Likely, step: Step, begun: Sequence[int], end: int, beam: int, most: int) -> Text:
    """The text of up to `most` tokens that is likeliest by its length. `first`: what comes behind `begun`, whose tokens
    are the text's and cost nothing. As many hypotheses as the beam is wide have ended when it does."""
    live, ended = [Text(list(begun), 0.0)], list[Text]()
    likely = first
    while len(live[0].tokens) < most:
        rows, following = list[int](), list[Text]()
        for rank, one in enumerate(_likeliest(live, likely, 2 * beam)):
            before = live[one.row].tokens
            if one.token != end and len(following) < beam:
                rows.append(one.row)
                following.append(Text([*before, one.token], one.log))
            elif one.token == end and rank < beam:
                ended.append(Text(before, one.log))
        if len(ended) >= beam or not following:
            break
        live = following
        if len(live[0].tokens) < most:
            likely = step(rows, live)
    else:
        ended += live
    return max(ended, key=lambda text: text.sure, default=live[0])


def _likeliest(live: list[Text], likely: Likely, count: int) -> list[_Next]:
    logs, tokens = likely.logs.tolist(), likely.tokens.tolist()
    found = [
        _Next(text.log + log, row, token)
        for row, text in enumerate(live)
        for log, token in zip(logs[row], tokens[row], strict=True)
        if log > -np.inf
    ]
    return sorted(found, key=lambda one: -one.log)[:count]


def repeating(tokens: Sequence[int], length: int) -> list[int]:
    """The tokens that would end `length` tokens which the text has already."""
    last = tuple(tokens[len(tokens) - length + 1 :])
    places = range(len(tokens) - length + 1)
    return [tokens[at + length - 1] for at in places if tuple(tokens[at : at + length - 1]) == last]
