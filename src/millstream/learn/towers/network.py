"""Two towers: what is computed of a user, and of an item, for training and for the files that are served.

    user's tokens ─► table ─┬─► sum ─────────────────────────┐
    history ─► its table ─► weighed mean ─┬─► sum ───────────┼─► vector of the user
                        both ─► layers ───┘──────────────────┘
    item's tokens ─► table ─┬─► sum ─────────────────────────┐
                            └─► layers ──────────────────────┴─► vector of the item

Rules of the room:
- The inner product of the two says how likely the item is the next that the user likes, among all.
- The history weighs its items by a layer's word on each and by how long ago it was: attention without a candidate, as
  the vector must not depend on one. Items that are not there weigh nothing.
- Layers begin by saying nothing, so that little data is not worse off for having them.
- Place 0 stands for nothing: its row is 0 and stays so.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import nn

from millstream.learn.towers.settings import TowerSettings

SPREAD: Final = 0.1  # of the tables as they begin
ABSENT: Final = -1e9  # the weight, before they share, of an item that is not there


class Shape(NamedTuple):
    """`size`: places in the tables, the empty one among them; `user`, `item`: tokens of each; `history`: items."""

    size: int
    user: int
    item: int
    history: int


class Towers(nn.Module):  # type: ignore[misc]
    """Both. Places, int64, become vectors [n, width]."""

    def __init__(self, shape: Shape, settings: TowerSettings) -> None:
        super().__init__()
        self.shape, width = shape, settings.width
        self.tokens = nn.Embedding(shape.size, width, padding_idx=0, sparse=True)
        self.past = nn.Embedding(shape.size, width, padding_idx=0, sparse=True)
        for table in (self.tokens, self.past):
            nn.init.normal_(table.weight[1:], std=SPREAD)
        self.ago = nn.Parameter(torch.zeros(shape.history))
        self.weigh = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)
        self.user_layers = _layers((shape.user + 1) * width, settings)
        self.item_layers = _layers(shape.item * width, settings)
        self.dropped = nn.Dropout(settings.dropout)

    def user(self, tokens: Any, history: Any) -> Any:
        """Vectors [n, width] of `tokens` [n, user] and `history` [n, history]."""
        return self.user_of(self.tokens(tokens), self.past(history), history != 0)

    def user_of(self, own: Any, items: Any, there: Any) -> Any:
        """The same of what the tables hold: `own` [n, user, width] and `items` [n, history, width], where they are
        `there` [n, history]."""
        weights = (self.weigh(items).squeeze(2) + self.ago).masked_fill(~there, ABSENT)
        shares = torch.softmax(weights, dim=1) * there
        interest = torch.bmm(shares.unsqueeze(1), items).squeeze(1)
        seen = self.dropped(torch.cat([own.flatten(1), interest], dim=1))
        return own.sum(dim=1) + interest + self.user_layers(seen)

    def item(self, tokens: Any) -> Any:
        """Vectors [n, width] of `tokens` [n, item]."""
        return self.item_of(self.tokens(tokens))

    def item_of(self, own: Any) -> Any:
        """The same of what the table holds, [n, item, width]."""
        return own.sum(dim=1) + self.item_layers(self.dropped(own.flatten(1)))


def _layers(takes: int, settings: TowerSettings) -> Any:
    last = nn.Linear(settings.hidden, settings.width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(takes, settings.hidden), nn.ReLU(), last)
