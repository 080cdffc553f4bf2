"""DeepFM and DIN: what is computed of a row, for training and for the file that is served.

    tokens ─► factors ─┬─► every pair (factorisation machine) ─┐
                       └─► layers ─────────────────────────────┼─► one number for each head
    tokens ─► linear weights ──────────────────────────────────┘
    history ─► factors ─► attention beside the candidate ─► more for the layers (DIN)

Rules of the room:
- DeepFM: Guo et al., "DeepFM: a factorization-machine based neural network for CTR prediction", IJCAI 2017. Heads share
  all but their linear weights, how each factor's pairs count, and the last layer.
- DIN: Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018, upon the same: a user's history
  is summed as a layer weighs each of its items beside the candidate. The weights share what is left of 1 by an item
  that is not there, so a history in which nothing matters says nothing, and the more matters the more it says. How far
  back an item lies counts, too.
- Place 0 stands for nothing: its weights and factors are 0, in rows and in histories, and stay so.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from millstream.learn.deep.settings import DeepSettings

SPREAD: Final = 0.05  # of factors as they begin
ABSENT: Final = -1e9  # the weight, before they share, of an item that is not there


class Shape(NamedTuple):
    """`size`: places in the tables, the empty one among them; `width`: tokens of a row; `heads`: numbers that come out;
    `history`: items of a history, 0 for DeepFM; `item`: where in a row the candidate's own token is."""

    size: int
    width: int
    heads: int
    history: int = 0
    item: int = 0


class Network(nn.Module):  # type: ignore[misc]
    """DeepFM, or with a history DIN. It takes places in its tables, int64, and gives log odds."""

    def __init__(self, shape: Shape, settings: DeepSettings) -> None:
        super().__init__()
        self.shape, factors = shape, settings.factors
        self.linear = nn.Embedding(shape.size, shape.heads, padding_idx=0, sparse=True)
        self.factors = nn.Embedding(shape.size, factors, padding_idx=0, sparse=True)
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.factors.weight[1:], std=SPREAD)
        self.bias = nn.Parameter(torch.zeros(shape.heads))
        self.pairs = nn.Parameter(torch.ones(factors, shape.heads))
        self.attention = Attention(shape.history, factors, settings.attention) if shape.history else None
        self.liking = nn.Parameter(torch.ones(factors, shape.heads)) if shape.history else None
        takes = shape.width * factors + (2 * factors if shape.history else 0)
        layers: list[Any] = []
        for units in settings.hidden:
            layers += [nn.Linear(takes, units), nn.ReLU(), nn.Dropout(settings.dropout)]
            takes = units
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(takes, shape.heads, bias=False)

    def forward(self, tokens: Any, history: Any = None) -> Any:
        """Log odds [n, heads] of `tokens` [n, width] and, for DIN, `history` [n, history]."""
        linear, factors = self.linear(tokens), self.factors(tokens)
        return self.head(linear, factors, None if history is None else self.factors(history), history)

    def head(self, linear: Any, factors: Any, items: Any, history: Any) -> Any:
        """The same of what the tables hold: `linear` [n, width, heads], `factors` [n, width, k] and of DIN, `items`
        [n, history, k]; `history` says which of these are there."""
        total = factors.sum(dim=1)
        pairs = 0.5 * (total * total - (factors * factors).sum(dim=1))
        odds = self.bias + linear.sum(dim=1) + pairs @ self.pairs
        seen = [factors.flatten(1)]
        if self.attention is not None:
            candidate = factors[:, self.shape.item]
            interest = self.attention(candidate, items, history != 0)
            odds = odds + (interest * candidate) @ self.liking
            seen += [interest, interest * candidate]
        return odds + self.last(self.layers(torch.cat(seen, dim=1)))


class Attention(nn.Module):  # type: ignore[misc]
    """Sums a history as it matters to a candidate. What item h weighs beside candidate c is one hidden layer's word on
    c, h and c * h, and how alike they are, and how long ago h was."""

    def __init__(self, history: int, factors: int, units: int) -> None:
        super().__init__()
        self.of_candidate = nn.Linear(factors, units)
        self.of_item = nn.Parameter(torch.empty(factors, units))
        self.of_both = nn.Parameter(torch.empty(factors, units))
        for one in (self.of_item, self.of_both):
            nn.init.uniform_(one, -(factors**-0.5), factors**-0.5)
        self.weigh = nn.Linear(units, 1, bias=False)
        self.likeness = nn.Parameter(torch.ones(factors))
        self.ago = nn.Parameter(torch.zeros(history))

    def forward(self, candidate: Any, items: Any, there: Any) -> Any:
        """[n, k] of `candidate` [n, k], `items` [n, h, k] and which of these are `there` [n, h]."""
        # h A + (c * h) B = h (A + diag(c) B): one small matrix a candidate, instead of c * h for each pair of them.
        beside = candidate.unsqueeze(2)
        hidden = torch.relu(
            torch.bmm(items, self.of_item + beside * self.of_both) + self.of_candidate(candidate).unsqueeze(1)
        )
        alike = torch.bmm(items, beside * self.likeness.unsqueeze(1))
        weights = (self.weigh(hidden) + alike).squeeze(2) + self.ago
        weights = weights.masked_fill(~there, ABSENT)
        shares = torch.softmax(torch.cat([weights, torch.zeros_like(weights[:, :1])], dim=1), dim=1)[:, :-1]
        return torch.bmm(shares.unsqueeze(1), items).squeeze(1)
