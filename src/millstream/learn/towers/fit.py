"""Train two towers on likes, on the cores of this machine.

Rules of the room:
- The same likes, settings and seed give the same towers on the same machine.
- Each like of a batch is to be told from the other items of that batch: softmax over what was sampled, as Yi et al.,
  "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019. An item comes into a
  batch the more often the more it is liked, so its score is less by the log of that chance; the counts are exact here.
- An item stands once in a batch, however many likes of it do. What a person liked at any other time is no negative of
  theirs.
- Some items are shown without their own token, so that the others learn to speak for an item that is new.
- Tables move where a batch touches them, by Adam; layers by Adam; both slow down evenly to a tenth. One thread, as for
  deep rankers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from millstream.errors import Misconfigured
from millstream.learn.deep.fit import one_thread
from millstream.learn.deep.vocabulary import Vocabulary, slots
from millstream.learn.towers.network import Shape, Towers
from millstream.learn.towers.rows import Likes, Rows, Tokens
from millstream.learn.towers.settings import TowerSettings

Floats = NDArray[np.float32]
Progress = Callable[[str], None]
FORBIDDEN: Final = -1e9  # the score of what a person liked at another time
_CHUNK: Final = 8192


class Learnt:
    """Towers that were trained, with the places of their tokens."""

    def __init__(self, network: Towers, vocabulary: Vocabulary) -> None:
        self.network, self.vocabulary = network, vocabulary

    def users(self, tokens: Tokens, history: Tokens) -> Floats:
        """Vectors float32 [n, width] of `tokens` uint32 [n, user_width] and `history` uint32 [n, h]."""
        return self._all(self.network.user, tokens, history)

    def items(self, tokens: Tokens) -> Floats:
        """Vectors float32 [n, width] of `tokens` uint32 [n, item_width]."""
        return self._all(self.network.item, tokens)

    def _all(self, tower: Callable[..., Any], *blocks: Tokens) -> Floats:
        self.network.eval()
        parts = [np.empty((0, self.network.tokens.embedding_dim), np.float32)]
        with torch.inference_mode():
            for at in range(0, len(blocks[0]), _CHUNK):
                placed = [torch.from_numpy(self.vocabulary.places(one[at : at + _CHUNK])) for one in blocks]
                parts.append(tower(*placed).numpy())
        return np.concatenate(parts)


def fit(likes: Likes, end: int, settings: TowerSettings, passes: int, seed: int, say: Progress) -> Learnt:
    """Of rows before `end`, one at least, `passes` times. Misconfigured: the steps are too large for these rows."""
    known, vocabulary = likes.known, _vocabulary(likes, end, settings)
    shape = Shape(vocabulary.size, known.people.shape[1], known.items.shape[1], settings.history)
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        network = Towers(shape, settings)
        _Fit(network, vocabulary, likes, end, settings, np.random.default_rng(seed)).run(passes, say)
    return Learnt(network.eval(), vocabulary)


def _vocabulary(likes: Likes, end: int, settings: TowerSettings) -> Vocabulary:
    """A like shows each token of its user and of its item once."""
    counts = np.zeros(1 << settings.bits, np.int64)
    for of, tokens in ((likes.whose[:end], likes.known.people), (likes.what[:end], likes.known.items)):
        shown = np.bincount(of, minlength=len(tokens))
        for column in tokens.T:
            np.add.at(counts, slots(column.astype(np.int64), settings.bits), shown)
    return Vocabulary(counts, settings.bits, settings.seen)


class _Fit:
    """One training."""

    def __init__(
        self, network: Towers, vocabulary: Vocabulary, likes: Likes, end: int, settings: TowerSettings,
        random: np.random.Generator,
    ) -> None:  # fmt: skip
        self._network, self._vocabulary, self._likes, self._end = network, vocabulary, likes, end
        self._settings, self._random = settings, random
        tables = [network.tokens.weight, network.past.weight]
        kept = {id(one) for one in tables}
        layers = [one for one in network.parameters() if id(one) not in kept]
        self._optimizers = [torch.optim.SparseAdam(tables, settings.rate), torch.optim.Adam(layers, settings.rate)]
        self._shares = np.bincount(likes.what[:end], minlength=len(likes.known.items)) / max(end, 1)
        order = np.argsort(likes.whose[:end], kind="stable")
        self._liked = likes.what[:end][order]
        counts = np.bincount(likes.whose[:end], minlength=len(likes.known.people))
        self._starts, self._counts = np.cumsum(counts) - counts, counts

    def run(self, passes: int, say: Progress) -> None:
        settings, end = self._settings, self._end
        done, steps = 0, passes * -(-end // settings.batch)
        self._network.train()
        for number in range(passes):
            order, losses = self._random.permutation(end), []
            for at in range(0, end, settings.batch):
                for optimizer in self._optimizers:
                    optimizer.param_groups[0]["lr"] = settings.rate * (1 - 0.9 * done / steps)
                    optimizer.zero_grad()
                loss, penalty = self._loss(order[at : at + settings.batch])
                (loss + settings.decay * penalty).backward()
                for optimizer in self._optimizers:
                    optimizer.step()
                losses.append(loss.detach())
                done += 1
            mean = float(torch.stack(losses).mean()) if losses else 0.0
            if not np.isfinite(mean):
                raise Misconfigured(f"towers: the loss of pass {number + 1} is {mean}; take smaller steps (rate)")
            say(f"pass {number + 1} of {passes}: loss {mean:.4f}")

    def _loss(self, rows: Rows) -> tuple[Any, Any]:
        """The mean loss of likes, and the mean square of what stands for their tokens."""
        likes, network, settings = self._likes, self._network, self._settings
        whose, among = likes.whose[rows], np.unique(likes.what[rows])
        own = network.tokens(self._placed(likes.known.people[whose]))
        history = self._placed(likes.histories(rows, settings.history))
        past = network.past(history)
        items = network.tokens(self._placed(self._shown(among)))
        users = network.user_of(own, past, history != 0)
        scores = users @ network.item_of(items).T / settings.temperature
        chance = -np.expm1(len(rows) * np.log1p(-np.minimum(self._shares[among], 1 - 1e-9)))
        scores = scores - torch.from_numpy(np.log(chance).astype(np.float32))
        target = np.searchsorted(among, likes.what[rows])
        forbidden = self._others(whose, among)
        forbidden[np.arange(len(rows)), target] = False
        scores = scores.masked_fill(torch.from_numpy(forbidden), FORBIDDEN)
        squares = (own * own).sum() + (items * items).sum() + (past * past).sum() / settings.history
        return functional.cross_entropy(scores, torch.from_numpy(target)), squares / len(rows)

    def _shown(self, among: Rows) -> Tokens:
        """Token rows of items, some without the item's own."""
        known = self._likes.known
        tokens: Tokens = known.items[among].copy()
        masked = self._random.random(len(among)) < self._settings.masked
        tokens[(tokens == known.marks[among][:, None]) & masked[:, None]] = 0
        return tokens

    def _others(self, whose: Rows, among: Rows) -> NDArray[np.bool_]:
        """bool [people, items]: who of `whose` liked which of `among`, which ascend, at any time."""
        counts = self._counts[whose]
        rows = np.repeat(np.arange(len(whose)), counts)
        at = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - self._starts[whose], counts)
        liked = self._liked[at]
        column = np.minimum(np.searchsorted(among, liked), len(among) - 1)
        here = among[column] == liked
        found = np.zeros((len(whose), len(among)), np.bool_)
        found[rows[here], column[here]] = True
        return found

    def _placed(self, tokens: Tokens) -> Any:
        return torch.from_numpy(self._vocabulary.places(tokens))
