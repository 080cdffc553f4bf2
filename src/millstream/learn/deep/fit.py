"""Train a deep ranker on shown items, on the cores of this machine.

Rules of the room:
- The same rows, settings and seed give the same network on the same machine.
- A label that is not known moves nothing; each head's loss is its own mean, so a rare one is not drowned.
- An amount is foretold as what is expected, nothing included: exp of a sum, fitted by the deviance of Poisson, whose
  best estimate is the mean whatever the amounts look like. Amounts are cut to a mean of 1 while they are learnt.
- Tables move where a batch touches them, by Adam; layers by Adam; both slow down evenly to a tenth.
- One thread: a step is too small to be shared out, and cores that others use make sharing cost many times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from millstream.errors import Misconfigured
from millstream.learn.deep.network import Network, Shape
from millstream.learn.deep.rows import Shown, Tokens
from millstream.learn.deep.settings import DeepSettings, Head
from millstream.learn.deep.vocabulary import Vocabulary

Floats = NDArray[np.float32]
Progress = Callable[[str], None]
ODDS_MAX: Final = 20.0  # log of an amount over its mean, and log odds: beyond, exp is of no use


class Learnt:
    """A network that was trained, with the places of its tokens. `scales` float32 [heads]: mean of an amount, 1 of
    others; `slopes`, `intercepts`: what makes honest probabilities of its log odds."""

    def __init__(self, network: Network, vocabulary: Vocabulary, heads: Sequence[Head], scales: Floats) -> None:
        self.network, self.vocabulary, self.heads, self.scales = network, vocabulary, tuple(heads), scales
        self.slopes, self.intercepts = np.ones(len(heads), np.float32), np.zeros(len(heads), np.float32)

    def outputs(self, tokens: Tokens, history: Tokens) -> Floats:
        """What it says of rows, float32 [n, heads]: probabilities, and amounts in their own unit. `tokens` uint32
        [n, width], `history` uint32 [n, h] (h 0 for DeepFM)."""
        with torch.inference_mode():
            said = self.network.eval()(*placed(self.vocabulary, tokens, history))
            found: Floats = told(said, self).numpy()
        return found

    def said(self, shown: Shown, first: int, end: int) -> Floats:
        """The same of shown items by number."""
        parts = [self.outputs(shown.tokens(rows), shown.histories(rows)) for rows in _ranges(first, end, 8192)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.heads)), np.float32)


def told(odds: Any, learnt: Learnt) -> Any:
    """Log odds [n, heads] as they are served."""
    odds = odds * torch.from_numpy(learnt.slopes) + torch.from_numpy(learnt.intercepts)
    columns = [
        torch.exp(torch.clamp(odds[:, at], -ODDS_MAX, ODDS_MAX)) * float(learnt.scales[at])
        if head.amount
        else torch.sigmoid(odds[:, at])
        for at, head in enumerate(learnt.heads)
    ]
    return torch.stack(columns, dim=1)


def fit(
    shown: Shown, end: int, heads: Sequence[Head], settings: DeepSettings, item: int, passes: int, seed: int,
    say: Progress,
) -> Learnt:  # fmt: skip
    """Of rows before `end`, `passes` times; `item`: the candidate's place in a row, where there are histories.
    Misconfigured: the steps are too large for these rows."""
    vocabulary = Vocabulary.of(shown, end, settings.bits, settings.seen)
    shape = Shape(vocabulary.size, shown.width, len(heads), shown.history, item)
    scales = _scales(shown, end, heads)
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        network = Network(shape, settings)
        _begin(network, shown, end, heads)
        _steps(network, vocabulary, shown, end, heads, scales, settings, passes, np.random.default_rng(seed), say)
    return Learnt(network.eval(), vocabulary, heads, scales)


def placed(vocabulary: Vocabulary, tokens: Tokens, history: Tokens) -> tuple[Any, Any]:
    """What a network takes of rows: places of their tokens, and of their histories, None without any."""
    past = torch.from_numpy(vocabulary.places(history)) if history.shape[1] else None
    return torch.from_numpy(vocabulary.places(tokens)), past


def _steps(
    network: Network, vocabulary: Vocabulary, shown: Shown, end: int, heads: Sequence[Head], scales: Floats,
    settings: DeepSettings, passes: int, random: np.random.Generator, say: Progress,
) -> None:  # fmt: skip
    tables = [network.linear.weight, network.factors.weight]
    kept = {id(one) for one in tables}
    optimizers = [
        (torch.optim.SparseAdam(tables, settings.factors_rate), settings.factors_rate),
        (torch.optim.Adam([one for one in network.parameters() if id(one) not in kept], settings.rate), settings.rate),
    ]
    done, steps = 0, passes * -(-end // settings.batch)
    network.train()
    for number in range(passes):
        order, losses = random.permutation(end), []
        for at in range(0, end, settings.batch):
            rows = np.sort(order[at : at + settings.batch])
            for optimizer, rate in optimizers:
                optimizer.param_groups[0]["lr"] = rate * (1 - 0.9 * done / steps)
                optimizer.zero_grad()
            loss, penalty = _loss(network, vocabulary, shown, rows, heads, scales)
            (loss + settings.decay * penalty).backward()
            for optimizer, _ in optimizers:
                optimizer.step()
            losses.append(loss.detach())
            done += 1
        mean = float(torch.stack(losses).mean()) if losses else 0.0
        if not np.isfinite(mean):
            raise Misconfigured(
                f"deep: the loss of pass {number + 1} is {mean}; take smaller steps (rate, factors_rate)"
            )
        say(f"pass {number + 1} of {passes}: loss {mean:.4f}")


def _loss(
    network: Network, vocabulary: Vocabulary, shown: Shown, rows: NDArray[np.int64], heads: Sequence[Head],
    scales: Floats,
) -> tuple[Any, Any]:  # fmt: skip
    """The loss of rows, sum over heads of each one's mean; and the mean of their factors' squares."""
    tokens, history = placed(vocabulary, shown.tokens(rows), shown.histories(rows))
    linear, factors = network.linear(tokens), network.factors(tokens)
    past = None if history is None else network.factors(history)
    odds = network.head(linear, factors, past, history)
    labels, weights = torch.from_numpy(shown.labels[rows]), torch.from_numpy(shown.weights[rows])
    loss = odds.new_zeros(())
    for at, head in enumerate(heads):
        known = ~torch.isnan(labels[:, at])
        said, true, weight = odds[known, at], labels[known, at], weights[known, at]
        if head.amount:
            said = torch.clamp(said, -ODDS_MAX, ODDS_MAX)
            each = torch.exp(said) - true / float(scales[at]) * said
        else:
            each = functional.binary_cross_entropy_with_logits(said, true, reduction="none")
        loss = loss + (each * weight).sum() / torch.clamp(weight.sum(), min=1.0)
    return loss, (factors * factors).sum() / len(rows)


def _begin(network: Network, shown: Shown, end: int, heads: Sequence[Head]) -> None:
    """Start from the rates of positives, so that no step goes into learning them."""
    for at, head in enumerate(heads):
        label, weight = shown.labels[:end, at], shown.weights[:end, at]
        known = ~np.isnan(label)
        if not head.amount and known.any():
            rate = np.clip(np.average(label[known], weights=weight[known]), 1e-4, 1 - 1e-4)
            with torch.no_grad():
                network.bias[at] = float(np.log(rate / (1 - rate)))


def _scales(shown: Shown, end: int, heads: Sequence[Head]) -> Floats:
    """The weighted mean of each amount, 1 of other heads and where all amounts are 0."""
    found = np.ones(len(heads), np.float32)
    for at, head in enumerate(heads):
        if head.amount and end and (mean := float(np.average(shown.labels[:end, at], weights=shown.weights[:end, at]))):
            found[at] = mean
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, torch computes on the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _ranges(first: int, end: int, size: int) -> Iterator[NDArray[np.int64]]:
    for at in range(first, end, size):
        yield np.arange(at, min(end, at + size))
